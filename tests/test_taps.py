from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd import models
from dfkd.errors import RequestError
from dfkd.taps import Tap, Tapped, find_taps, parse_tap, parse_taps


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
WITHOUT_BATCH_NORM = {"lenet5", "lenet5_half", "squeezenet1_1", "convnext", "vision_transformer"}
SMALL = ["cifar_resnet", "wide_resnet", "lenet5", "resnet18", "mobilenet_v3_small", "convnext", "vision_transformer"]


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
    assert set(models.__all__) <= NETWORKS.keys()


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


def test_an_inplace_activation_does_not_reach_the_feature():
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2))
    images = torch.randn(8, 1, 1, 1)
    _, features = Tapped(network, {"first": Tap("1")})(images)
    expected = F.batch_norm(network[0](images), None, None, training=True)
    torch.testing.assert_close(features["first"], expected)
    assert features["first"].min() < 0


def test_a_batch_norm_fused_with_its_activation_is_tapped_between_the_two():
    class Fused(nn.BatchNorm2d):  # as timm's BatchNormAct2d
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.drop(super().forward(x)))

    network = nn.Sequential(nn.Conv2d(1, 4, 1), Fused(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.randn(8, 1, 1, 1)
    taps = find_taps(network, images).taps
    assert taps["first"] == Tap("1.drop", "input")
    _, features = Tapped(network, taps)(images)
    torch.testing.assert_close(features["first"], nn.BatchNorm2d.forward(network[1], network[0](images)))


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
    with pytest.raises(RequestError, match=r"cannot take a batch of shape \[1, 1, 8, 8\]"):
        find_taps(network, torch.rand(1, 1, 8, 8))
    assert [layer.training for layer in network.modules()] == flags
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())


def test_gradients_flow_through_features_and_not_out_of_a_frozen_teacher():
    images = torch.rand(2, 3, 8, 8)
    student = Tapped(models.cifar_resnet(8, width=4).train(), parse_taps(["first=bn1", "last=linear:input"]))
    _, features = student(images)
    features["first"].square().mean().backward()
    assert student.module.conv1.weight.grad is not None and student.module.conv1.weight.grad.any()
    assert student.module.linear.weight.grad is None
    with torch.no_grad():
        _, features = student(images)
    assert not any(feature.requires_grad for feature in features.values())


def test_features_are_fresh_at_each_call_and_outlive_the_next():
    tapped = Tapped(models.cifar_resnet(8, width=4).eval(), {"first": Tap("bn1")})
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    _, first = tapped(black)
    kept = first["first"].clone()
    _, second = tapped(white)
    assert torch.equal(first["first"], kept)
    assert not torch.equal(second["first"], kept)
    tapped.module(white)  # a pass of its own captures nothing
    assert tapped._captured is None


def test_features_under_autocast_have_its_type():
    tapped = Tapped(models.cifar_resnet(8, width=4).train(), parse_taps(["first=bn1", "last=linear:input"]))
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = tapped(torch.rand(2, 3, 8, 8))
    assert {logits.dtype, features["first"].dtype, features["last"].dtype} == {torch.bfloat16}
    (logits.float().sum() + features["first"].float().sum()).backward()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.bn(x) + 5).mean((2, 3)).expand(-1, 3)
        return self.fc(input=self.fc(x))


def test_of_a_module_that_runs_twice_the_first_output_and_the_last_input_are_taken():
    network, images = Twice().eval(), torch.rand(2, 1, 2, 2)
    found = find_taps(network, images)
    assert found.taps == {"first": Tap("bn"), "last": Tap("fc", "input")}
    logits, features = Tapped(network, found.taps)(images)
    torch.testing.assert_close(features["first"], network.bn(images))
    torch.testing.assert_close(network.fc(features["last"]), logits)


def test_removed_hooks_are_gone():
    network = models.cifar_resnet(8, width=4).eval()
    tapped = Tapped(network, parse_taps(["first=bn1", "last=linear:input"]))
    tapped.remove()
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


def test_an_exported_program_is_tapped_by_hand(tmp_path):
    from dfkd.models.load import load_model

    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    images = torch.rand(2, 3, 8, 8)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(network.eval(), (images,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    program = load_model(str(tmp_path / "net.pt2")).module
    with pytest.raises(RequestError, match="--teacher-taps"):
        find_taps(program, images)
    logits, features = Tapped(program, parse_taps(["first=1", "last=4:input"]))(images)
    torch.testing.assert_close(features["first"], network[1](network[0](images)))
    torch.testing.assert_close(network[4](features["last"]), logits)


def test_a_wrong_path_is_refused_with_the_nearest():
    network = models.cifar_resnet(8, width=4)
    with pytest.raises(RequestError, match=r"no module 'layer1.0.bn3'; did you mean 'layer1.0.bn[12]'"):
        Tapped(network, {"first": Tap("layer1.0.bn3")})
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())


def test_a_place_that_is_not_passed_or_holds_no_tensor_is_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(1, 1)
            self.rnn = nn.GRU(3, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.flatten(2).mT)[0][:, -1]

    images = torch.rand(1, 3, 2, 2)
    with pytest.raises(RequestError, match="tap first=unused is not passed"):
        Tapped(Odd(), {"first": Tap("unused")})(images)
    with pytest.raises(RequestError, match="tap first=rnn is a tuple, not a tensor"):
        Tapped(Odd(), {"first": Tap("rnn")})(images)


def test_auxiliary_heads_are_refused_with_the_mend():
    class Auxiliary(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((2, 3)), x

    with pytest.raises(RequestError, match="aux_logits=false"):
        Tapped(Auxiliary(), {})(torch.rand(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("text", "tap"),
    [("bn1", Tap("bn1")), ("layer1.0.bn1:output", Tap("layer1.0.bn1")), ("linear:input", Tap("linear", "input"))],
)
def test_a_tap_has_a_text_form(text: str, tap: Tap):
    assert parse_tap(text) == tap
    assert parse_tap(str(tap)) == tap


@pytest.mark.parametrize("text", ["", ":input", "bn1:", "bn1:inside"])
def test_a_wrong_tap_is_refused(text: str):
    with pytest.raises(RequestError, match="PATH:input"):
        parse_tap(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["bn1"], "NAME=PATH"), (["=bn1"], "NAME=PATH"), (["first=a", "first=b"], "names a tap twice")],
)
def test_wrong_named_taps_are_refused(texts: list[str], message: str):
    with pytest.raises(RequestError, match=message):
        parse_taps(texts)
