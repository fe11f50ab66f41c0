import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from dfkd.app import demo
from dfkd.config.stages.shared import Input
from dfkd.data.images.filter import Filter
from dfkd.models.classifier import Classifier
from dfkd.models.features.bn_statistics import BatchStatistics
from dfkd.models.load import load_model
from dfkd.select import filters
from dfkd.select.filters import blur, fitted, inception_score
from dfkd.system.device import resolve_place
from dfkd.system.errors import RequestError


@pytest.fixture(scope="module")
def digits():
    return demo.digits()


@pytest.fixture(scope="module")
def unseen(digits):
    """Digits that the teacher has not learnt from."""
    return digits[0][1000:]


@pytest.fixture(scope="module")
def teacher(digits_teacher):
    model = load_model(f"{demo.TEACHER}@{digits_teacher}", Input(demo.NORMALIZE))
    return Classifier(model, resolve_place("cpu", "fp32"))


def apart(teacher, pixels):
    statistics = BatchStatistics(teacher.model.module)
    with torch.no_grad(), statistics.watched():
        teacher(torch.from_numpy(pixels))
    return statistics.divergence().item()


def test_divergence_and_its_gradient_are_those_of_normal_distributions():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double().eval()
    for layer in layers:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    statistics = BatchStatistics(layers)
    with statistics.watched():
        layers(x)
    found = statistics.divergence()

    def normal(mean, variance, layer):
        return torch.distributions.Normal(mean, (variance + layer.eps).sqrt())

    expected, value = [], x
    for layer in layers:
        own = normal(value.mean(0), value.var(0, unbiased=False), layer)
        expected.append(torch.distributions.kl_divergence(own, normal(layer.running_mean, layer.running_var, layer)))
        value = layer(value)
    expected = torch.stack(expected).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    own, other = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (found, expected))
    torch.testing.assert_close(own, other)


def test_inception_score_is_the_number_of_classes_that_are_shown_surely():
    sure = 100 * torch.eye(5)
    assert inception_score(sure[[0, 1, 2, 3]]) == pytest.approx(4)
    assert inception_score(sure[[2, 2, 2]]) == pytest.approx(1)
    assert inception_score(torch.zeros(6, 5)) == pytest.approx(1)
    assert inception_score(torch.full((3, 5), float("inf"))) == 1
    assert inception_score(torch.cat([sure[[0, 1]], torch.full((1, 5), float("nan"))])) == pytest.approx(2)


def test_inception_score_against_a_plain_formula(rng):
    logits = rng.normal(size=(40, 6)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean())
    assert inception_score(torch.from_numpy(logits)) == pytest.approx(expected)


@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_blur_is_a_gaussian(teacher, unseen, sigma):
    found = blur(teacher, torch.from_numpy(unseen), sigma=sigma)(unseen).astype(int)
    planes = torch.from_numpy(unseen).permute(0, 3, 1, 2)
    expected = gaussian_blur(planes, [13, 13], [sigma, sigma]).permute(0, 2, 3, 1).numpy().astype(int)
    inner = slice(6, -6)  # the edges are continued in another way
    assert np.abs(found - expected)[:, inner, inner].max() <= 1


def test_below_zero_what_a_blur_takes_away_is_added(teacher, unseen):
    smooth = blur(teacher, torch.from_numpy(unseen), sigma=0.7)
    sharp = blur(teacher, torch.from_numpy(unseen), sigma=-0.7)
    kernel = smooth.kernel + sharp.kernel
    middle = kernel.shape[-1] // 2
    assert torch.allclose(kernel[:, :, middle, middle], torch.tensor(2.0))
    assert kernel.sum() == pytest.approx(2)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 3.1, -4.0, float("nan")])
def test_a_blur_of_nothing_or_of_everything_is_refused(teacher, unseen, sigma):
    with pytest.raises(RequestError, match=r"is not from 0\.1 to 3, or from -3 to -0\.1"):
        blur(teacher, torch.from_numpy(unseen), sigma=sigma)


def pixels(images, own):
    """Mean absolute difference of the pixels."""
    return np.abs(images.astype(float) - own).mean()


def edges(images, own):
    """Difference of the logarithms of the mean squared steps between neighbouring pixels."""
    energies = (sum(np.mean(np.diff(x.astype(float), axis=axis) ** 2) for axis in (1, 2)) for x in (images, own))
    return abs(np.log(next(energies) / next(energies)))


@pytest.mark.parametrize(
    ("change", "apart_after", "measure", "differ_after"),
    # of sharpened digits the pixels hardly get nearer with one teacher in six; the edges do with all
    [("sharper", 0.25, edges, 0.7), ("softer", 0.3, pixels, 0.85), ("paler", 0.2, pixels, 0.6)],
)
def test_a_fitted_filter_takes_back_what_was_done_to_the_digits(
    teacher, unseen, change, apart_after, measure, differ_after, monkeypatch
):
    monkeypatch.setattr(filters, "_STEPS", 15)  # a quarter, each four times as long
    monkeypatch.setattr(filters, "_RATE", 2e-2)
    done = {
        "sharper": blur(teacher, torch.from_numpy(unseen), sigma=-1.0),
        "softer": blur(teacher, torch.from_numpy(unseen), sigma=1.0),
        "paler": Filter(torch.full((1, 1, 1, 1), 0.4), torch.tensor([0.3])),
    }[change]
    pool = done(unseen)
    found = fitted(teacher, torch.from_numpy(pool[::2]))
    back = found(pool[1::2])
    assert apart(teacher, back) < apart_after * apart(teacher, pool[1::2])
    assert measure(back, unseen[1::2]) < differ_after * measure(pool[1::2], unseen[1::2])


def test_a_fit_depends_on_nothing_else_and_leaves_the_teacher_as_it_was(teacher, unseen, monkeypatch):
    monkeypatch.setattr(filters, "_STEPS", 8)
    state = {key: value.clone() for key, value in teacher.model.module.state_dict().items()}
    torch.manual_seed(3)
    first = fitted(teacher, torch.from_numpy(unseen[:200]), size=3)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    again = fitted(teacher, torch.from_numpy(unseen[:200]), size=3)
    assert torch.equal(first.kernel, again.kernel)
    assert first.kernel.shape == (1, 1, 3, 3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(state[key], value) for key, value in teacher.model.module.state_dict().items())
    assert not first.kernel.requires_grad


@pytest.mark.parametrize("size", [0, -1, 4, 17])
def test_a_kernel_without_a_middle_is_refused(teacher, unseen, size):
    with pytest.raises(RequestError, match=f"size={size} is not odd"):
        fitted(teacher, torch.from_numpy(unseen), size=size)


def test_a_teacher_without_statistics_is_refused(unseen):
    bare = Classifier(load_model("lenet5:in_channels=1"), resolve_place("cpu", "fp32"))
    with pytest.raises(RequestError, match=r"^it reads the statistics .* has none; blur works without"):
        fitted(bare, torch.from_numpy(unseen))
