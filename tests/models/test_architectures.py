import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd import models
from dfkd.models.architectures.cifar_resnet import BasicBlock
from dfkd.models.architectures.wide_resnet import WideBlock

NETWORKS = {
    "cifar_resnet": lambda **counts: models.cifar_resnet(8, width=4, **counts),
    "wide_resnet": lambda **counts: models.wide_resnet(10, 1, **counts),
    "vgg": lambda **counts: models.vgg(11, **counts),
    "resnet18_small": models.resnet18_small,
    "resnet34_small": models.resnet34_small,
    "resnet50_small": models.resnet50_small,
    "mobilenet_v2_small": lambda **counts: models.mobilenet_v2_small(0.25, **counts),
    "shufflenet_v2_small": lambda **counts: models.shufflenet_v2_small(0.5, **counts),
    "squeezenet_small": models.squeezenet_small,
    "soft_tree": lambda **counts: models.soft_tree(depth=3, **counts),
    "lenet5": models.lenet5,
    "lenet5_half": models.lenet5_half,
}


def test_every_public_architecture_is_tested():
    changed = {"pruned", "quantized"}  # made of another network: see test_compress.py
    changed |= {"specialists"}  # see test_specialists.py
    changed |= {"sklearn"}  # has no gradients: see test_estimator.py
    changed |= {"clip"}  # has weights of its own: see test_clip.py
    assert NETWORKS.keys() | changed == set(models.__all__)


@pytest.mark.parametrize("name", NETWORKS)
def test_gives_logits_of_the_asked_classes_and_takes_the_asked_channels(name: str):
    with torch.device("meta"):  # shapes alone: no time goes into numbers
        network = NETWORKS[name](num_classes=7, in_channels=2)
        logits = network(torch.rand(3, 2, 32, 32))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name in NETWORKS if "lenet" not in name and "tree" not in name])
@pytest.mark.parametrize("size", [1, 13, 16])
def test_takes_images_of_any_size(name: str, size: int):
    with torch.device("meta"):
        assert NETWORKS[name]().eval()(torch.rand(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize("name", ["cifar_resnet", "wide_resnet", "vgg", "resnet18_small", "lenet5"])
def test_convolutions_begin_with_he_fan_out_deviation(name: str):
    torch.manual_seed(0)
    layers = [layer for layer in NETWORKS[name]().modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
        expected = (2 / fan_out) ** 0.5
        error = 4 * expected / layer.weight.numel() ** 0.5  # four deviations of a deviation, and more
        assert layer.weight.std().item() == pytest.approx(expected, abs=error)
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize(
    ("network", "count"),
    [  # the papers' tables say 0.27M, 0.85M, 0.2M and 2.2M
        (lambda: models.cifar_resnet(20), 269_722),
        (lambda: models.cifar_resnet(56), 853_018),
        (lambda: models.wide_resnet(16, 1), 175_066),
        (lambda: models.wide_resnet(40, 2), 2_243_546),
        (models.resnet18_small, 11_173_962),
        (models.resnet34_small, 21_282_122),
        (lambda: models.vgg(16), 14_728_266 - 4_224),  # as with biases in the convolutions, but without,
        (models.mobilenet_v2_small, 3_504_872 - 1_281_000 + 12_810),  # torchvision's with ten classes
        (models.shufflenet_v2_small, 2_278_604 - 1_025_000 + 10_250),
        (lambda: models.shufflenet_v2_small(0.5), 1_366_792 - 1_025_000 + 10_250),
        (models.squeezenet_small, 1_235_496 - 513_000 + 5_130),
        (models.lenet5, 61_706),
        (models.lenet5_half, 15_738),
    ],
)
def test_has_the_published_number_of_parameters(network, count: int):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in network().parameters()) == count


def test_cifar_resnet_has_the_keys_of_the_published_checkpoints():
    keys = {key for key in models.cifar_resnet(14).state_dict() if not key.endswith("num_batches_tracked")}
    norm = ("weight", "bias", "running_mean", "running_var")
    stem = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{part}" for part in norm}
    blocks = {
        f"layer{stage}.{block}.{layer}"
        for stage in (1, 2, 3)
        for block in (0, 1)
        for i in (1, 2)
        for layer in (f"conv{i}.weight", *(f"bn{i}.{part}" for part in norm))
    }
    assert keys == stem | blocks


def test_cifar_resnet_shortcut_subsamples_and_pads_channels_on_both_sides():
    block = BasicBlock(4, 8, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # so that the shortcut alone is left
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_wide_block_activates_before_its_convolutions():
    def reference(block: WideBlock, x: Tensor) -> Tensor:
        active = F.relu(F.batch_norm(x, torch.zeros(4), torch.ones(4)))
        middle = F.conv2d(active, block.conv1.weight, stride=2, padding=1)
        middle = F.relu(F.batch_norm(middle, torch.zeros(8), torch.ones(8)))
        shortcut = F.conv2d(active, block.shortcut.weight, stride=2)
        return F.conv2d(middle, block.conv2.weight, padding=1) + shortcut

    block = WideBlock(4, 8, 2, dropout=0.5).eval()
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), reference(block, x))
    same = WideBlock(4, 4, 1, dropout=0.0).eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)


def test_small_resnet_keeps_the_resolution_of_its_input_in_the_stem():
    sizes = []
    with torch.device("meta"):
        network = models.resnet18_small()
        network.layer1.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
        network(torch.rand(1, 3, 32, 32))
    assert sizes == [32]


@pytest.mark.parametrize("name", ["mobilenet_v2_small", "shufflenet_v2_small", "squeezenet_small"])
def test_small_mobile_networks__halve_the_map_three_times(name: str):
    sizes = []
    with torch.device("meta"):
        network = NETWORKS[name]()
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
        for layer in layers:
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[-1]))
        network(torch.rand(1, 3, 32, 32))
    assert sizes[0] == 32
    assert [*dict.fromkeys(sizes)] == [32, 16, 8, 4]


def test_squeezenet_small__is_torchvisions_without_the_last_relu():
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    ours, theirs = models.squeezenet_small().eval(), squeezenet1_1(num_classes=10).eval()
    ours.features.load_state_dict(theirs.features.state_dict())
    last = theirs.classifier[1]
    ours.classifier.load_state_dict({"weight": last.weight.flatten(1), "bias": last.bias})
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), last(ours.features(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.mobilenet_v2_small(0.0), "width=0.0 is not above 0"),
        (lambda: models.shufflenet_v2_small(0.75), "width=0.75 is not one of 0.5, 1.0, 1.5, 2.0"),
        (lambda: models.cifar_resnet(21), r"depth=21 is not 6n\+2"),
        (lambda: models.cifar_resnet(2), r"depth=2 is not 6n\+2"),
        (lambda: models.wide_resnet(20, 1), r"depth=20 is not 6n\+4"),
        (lambda: models.vgg(12), "depth=12 is not one of 11, 13, 16, 19"),
    ],
)
def test_refuses_a_depth_that_the_architecture_has_not(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()
