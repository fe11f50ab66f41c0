from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.models.features.find_taps import find_taps, match_groups
from dfkd.models.features.taps import Tap, Tapped, parse_taps
from dfkd.system.errors import RequestError


class Traced(nn.Module):
    """Keeps what one of its layers gave last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.conv(x)
        logits: Tensor = self.fc(self.seen.mean((2, 3)))
        return logits


def test_a_network_is_traced_without_gradients() -> None:
    network = Traced()
    find_taps(network, torch.zeros(1, 1, 8, 8), wanted=("last",))
    assert not network.seen.requires_grad


def small_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10)


def of_torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=10)

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, str, str]] = {  # network, channels, first, last
    "cifar_resnet": (lambda: models.cifar_resnet(8, width=4), 3, "bn1", "linear:input"),
    "wide_resnet": (lambda: models.wide_resnet(10, 1), 3, "layer1.0.bn1", "linear:input"),
    "vgg": (lambda: models.vgg(11), 3, "features.1", "classifier:input"),
    "resnet18_small": (models.resnet18_small, 3, "bn1", "fc:input"),
    "resnet34_small": (models.resnet34_small, 3, "bn1", "fc:input"),
    "resnet50_small": (models.resnet50_small, 3, "bn1", "fc:input"),
    "mobilenet_v2_small": (lambda: models.mobilenet_v2_small(0.25), 3, "features.0.1", "classifier.1:input"),
    "shufflenet_v2_small": (lambda: models.shufflenet_v2_small(0.5), 3, "conv1.1", "fc:input"),
    "squeezenet_small": (models.squeezenet_small, 3, "features.0", "classifier:input"),
    "lenet5": (models.lenet5, 1, "features.0", "classifier.2:input"),
    "lenet5_half": (models.lenet5_half, 1, "features.0", "classifier.2:input"),
    "resnet18": (of_torchvision("resnet18"), 3, "bn1", "fc:input"),
    "mobilenet_v2": (of_torchvision("mobilenet_v2"), 3, "features.0.1", "classifier.1:input"),
    "mobilenet_v3_small": (of_torchvision("mobilenet_v3_small"), 3, "features.0.1", "classifier.3:input"),
    "efficientnet_b0": (of_torchvision("efficientnet_b0"), 3, "features.0.1", "classifier.1:input"),
    "vgg11_bn": (of_torchvision("vgg11_bn"), 3, "features.1", "classifier.6:input"),
    "squeezenet1_1": (of_torchvision("squeezenet1_1"), 3, "features.0", "classifier.1:input"),
    "convnext": (small_convnext, 3, "features.0.0", "classifier.2:input"),
    "vision_transformer": (small_vit, 3, "conv_proj", "heads.head:input"),
}
SMALL = ["cifar_resnet", "wide_resnet", "lenet5", "resnet18", "mobilenet_v3_small", "convnext", "vision_transformer"]
WITHOUT_BATCH_NORM = {"lenet5", "lenet5_half", "squeezenet1_1", "squeezenet_small", "convnext", "vision_transformer"}


@pytest.mark.parametrize("name", NETWORKS)
def test_finds_the_taps_of(name: str):
    build, channels, first, last = NETWORKS[name]
    with torch.device("meta"):  # the order of running needs no numbers
        found = find_taps(build(), torch.rand(2, channels, 32, 32))
    assert {key: str(tap) for key, tap in found.taps.items()} == {"first": first, "last": last}
    stem = [note for note in found.notes if "no BatchNorm" in note]
    assert bool(stem) == (name in WITHOUT_BATCH_NORM)
    assert all(repr(first) in note for note in stem)


@pytest.mark.parametrize("name", SMALL)
def test_captures_the_features_of(name: str):
    build, channels, first, last = NETWORKS[name]
    network = build().eval()
    images = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        logits, features = Tapped(network, parse_taps([f"first={first}", f"last={last}"]))(images)
        torch.testing.assert_close(logits, network(images))
        classifier = network.get_submodule(last.removesuffix(":input"))
        torch.testing.assert_close(classifier(features["last"]), logits)
    assert features["first"].ndim == 4
    assert features["first"].min() < 0, "the feature is taken before the activation"


def test_every_architecture_of_the_package_is_covered():
    without_taps = {"soft_tree", "sklearn"}  # trees have none
    without_taps |= {"pruned", "quantized", "specialists", "clip"}  # those of another network
    assert set(models.__all__) <= NETWORKS.keys() | without_taps


class Unordered(nn.Module):
    """Registered in another order than run, so that names and registration mislead."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_late = nn.Linear(6, 3)
        self.bn_b = nn.BatchNorm2d(6)
        self.bn_a = nn.BatchNorm2d(4)
        self.conv_b = nn.Conv2d(4, 6, 1)
        self.conv_a = nn.Conv2d(2, 4, 1)
        self.gate = nn.Linear(6, 6)
        self.fc_unused = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_a(self.conv_a(x)).relu_()
        x = self.bn_b(self.conv_b(x)).relu_().mean((2, 3))
        logits = self.fc_late(x)
        return logits * self.gate(x).sigmoid().mean(1, keepdim=True)  # the gate runs last, but gives no classes


def test_taps_follow_the_order_of_running():
    taps = find_taps(Unordered(), torch.rand(1, 2, 4, 4)).taps
    assert taps == {"first": Tap("bn_a"), "last": Tap("fc_late", "input")}


def test_searching_leaves_no_trace_in_the_module():
    network = models.cifar_resnet(8, width=4).train()
    network.layer1.eval()  # a frozen part stays frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [layer.training for layer in network.modules()]
    images, state = torch.rand(2, 3, 16, 16), torch.get_rng_state()
    find_taps(network, images)
    assert [layer.training for layer in network.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
    with pytest.raises(RequestError, match=r"fails in evaluation mode on \[1, 1, 8, 8\]: RuntimeError: "):
        find_taps(network, torch.rand(1, 1, 8, 8))
    assert [layer.training for layer in network.modules()] == flags
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())


def test_given_taps_are_kept_and_the_others_found():
    network = models.cifar_resnet(8, width=4)
    given = {"first": Tap("layer1.0.bn1")}
    taps = find_taps(network, torch.rand(1, 3, 8, 8), given).taps
    assert taps == {"first": Tap("layer1.0.bn1"), "last": Tap("linear", "input")}
    assert given == {"first": Tap("layer1.0.bn1")}
    both = {"first": Tap("a"), "last": Tap("b")}
    assert find_taps(nn.Identity(), torch.rand(1, 3, 8, 8), both).taps == both  # nothing is run


def test_where_nothing_is_found_the_mend_is_named():
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(RequestError, match=r"'first'.*--student-taps or --teacher-taps first=bn1 last=linear:input"):
        find_taps(Plain(), torch.rand(1, 3, 8, 8))
    with pytest.raises(RequestError, match=r"'last'.*gives 3 classes"):
        find_taps(nn.Sequential(nn.BatchNorm2d(3), Plain()), torch.rand(1, 3, 8, 8))
    with pytest.raises(RequestError, match="not one tensor of logits"):
        find_taps(nn.BatchNorm2d(3), torch.rand(1, 3, 8, 8))


GROUPS = {  # network, image side: stage, pre, begin
    "cifar_resnet": (
        (lambda: models.cifar_resnet(20), 32),
        "layer1 layer2 layer3",
        "layer1.2.relu:input layer2.2.relu:input layer3.2.relu:input",
        "conv1 layer2.0.conv1 layer3.0.conv1",
    ),
    "wide_resnet": (  # a block ends in a sum: nothing is active there
        (lambda: models.wide_resnet(10, 2), 32),
        "layer1 layer2 bn",
        "layer1 layer2 bn",
        "layer1.0.conv1 layer2.0.conv1 layer3.0.conv1",
    ),
    "vgg": (
        (lambda: models.vgg(11), 32),
        "features.2 features.6 features.13 features.20 features.27",
        "features.2:input features.6:input features.13:input features.20:input features.27:input",
        "features.0 features.4 features.8 features.15 features.21",
    ),
    "resnet50": (  # the next stage's first convolutions still have this stage's resolution
        (of_torchvision("resnet50"), 64),
        "relu layer1 layer2 layer3 layer4",
        "relu:input layer1.2.relu:input layer2.3.relu:input layer3.5.relu:input layer4.2.relu:input",
        "conv1 layer1.0.conv3 layer2.0.conv3 layer3.0.conv3 layer4.0.conv3",
    ),
    "mobilenet_v2": (
        (of_torchvision("mobilenet_v2"), 64),
        "features.1 features.3 features.6 features.13 features",
        "features.1 features.3 features.6 features.13 features.18.2:input",
        "features.1.conv.1 features.2.conv.2 features.4.conv.2 features.11.conv.2 features.18.0",
    ),
    "convnext": (  # computes with channels last inside its blocks
        (small_convnext, 32),
        "features.1 features",
        "features.1 features",
        "features.0.0 features.2.1",
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_finds_the_stages_of(name: str):
    (build, side), *expected = GROUPS[name]
    found = find_taps(build(), torch.rand(1, 3, side, side), wanted=("stage", "pre", "begin"))
    for group, paths in zip(("stage", "pre", "begin"), expected, strict=True):
        taps = [str(tap) for key, tap in found.taps.items() if key.startswith(group)]
        assert taps == paths.split(), group
        assert [key for key in found.taps if key.startswith(group)] == [f"{group}{i + 1}" for i in range(len(taps))]


def test_the_map_before_the_activation_is_the_one_that_becomes_the_stages_output():
    network, images = models.resnet18_small().eval(), torch.randn(2, 3, 16, 16)
    taps = find_taps(network, images, wanted=("stage", "pre", "begin")).taps
    with torch.no_grad():
        _, features = Tapped(network, taps)(images)
    for i in range(1, 5):
        assert features[f"pre{i}"].min() < 0
        torch.testing.assert_close(features[f"pre{i}"].relu(), features[f"stage{i}"])
        assert features[f"begin{i}"].shape == features[f"stage{i}"].shape


def test_an_activation_that_is_no_module_is_said():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x).mean((2, 3)))

    class Block(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    found = find_taps(Functional(), torch.randn(2, 3, 8, 8), wanted=("pre",))
    assert found.taps == {"pre1": Tap("block")}
    assert found.notes == ["the map of 'block' cannot be taken before its activation: it is taken after it"]


class Halving(nn.Conv2d):
    """A strided convolution that pads in a module of its own and ends in an activation that is no module."""

    def __init__(self, channels, width):
        super().__init__(channels, width, 3, stride=2)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return super().forward(self.pad(x)).relu()


def test_find_taps__padding_modules__are_no_resolutions_and_one_note_tells_of_all_layers():
    torch.manual_seed(0)
    network = nn.Sequential(Halving(3, 4), Halving(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = find_taps(network, torch.randn(2, 3, 16, 16), wanted=("pre",))
    assert found.taps == {"pre1": Tap("0"), "pre2": Tap("1")}
    assert found.notes == [
        "the maps of '0' and 1 more cannot be taken before their activations: they are taken after them"
    ]


def test_a_given_place_of_a_group_stands_for_the_group():
    network, images = models.cifar_resnet(8, width=4), torch.rand(1, 3, 16, 16)
    given = {"stage1": Tap("layer1.0.bn2")}
    taps = find_taps(network, images, given, ("stage", "last")).taps
    assert taps == {"stage1": Tap("layer1.0.bn2"), "last": Tap("linear", "input")}


def test_networks_without_maps_are_told_what_to_write():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(RequestError, match=r"'stage'.*no map of more than one pixel.*stage1=layer1 stage2=layer2"):
        find_taps(network, torch.rand(1, 3, 2, 2), wanted=("stage",))


def test_groups_are_matched_from_the_deepest():
    teacher = {"first": Tap("bn"), "stage1": Tap("a"), "stage2": Tap("b"), "stage10": Tap("c")}
    student = {"first": Tap("bn1"), "stage1": Tap("x"), "stage2": Tap("y")}
    theirs, ours = match_groups(teacher, student)
    assert theirs == {"first": Tap("bn"), "stage1": Tap("b"), "stage2": Tap("c")}
    assert ours == student
