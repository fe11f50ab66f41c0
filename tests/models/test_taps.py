import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd import models
from dfkd.models.cost import multiplications
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import Tap, Tapped, modes_kept, parse_tap, parse_taps
from dfkd.system.errors import RequestError


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


def test_auxiliary_heads_are_refused_with_a_hint():
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


def test_modes_kept__restores_each_layer_also_after_an_error():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)).train()
    network[1].eval()
    with pytest.raises(ValueError), modes_kept(network.modules()):
        network.eval()
        raise ValueError
    assert [layer.training for layer in network.modules()] == [True, True, False, True, True]
    multiplications(network, torch.zeros(1, 1, 1, 1))
    assert [layer.training for layer in network.modules()] == [True, True, False, True, True]
