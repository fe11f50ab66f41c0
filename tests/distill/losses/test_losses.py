"""Value and gradient of every loss against a plain NumPy float64 formula, by central differences."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import KD, Explicit, Relation
from dfkd.errors import RequestError
from dfkd.outputs import Outputs


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numeric_gradient(formula, x, step=1e-6):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (formula(up) - formula(down)) / (2 * step)
    return gradient


def check_loss(loss, student, teacher, formula, kept=None):
    """The loss on float64 logits against `formula(student)`."""
    ours = torch.tensor(student, requires_grad=True)
    theirs = torch.tensor(teacher, requires_grad=True)
    value = loss(Outputs(ours), Outputs(theirs, {}, kept))
    assert value.item() == pytest.approx(formula(student), rel=1e-5, abs=1e-12)
    value.backward()
    np.testing.assert_allclose(ours.grad.numpy(), numeric_gradient(formula, student), rtol=1e-4, atol=1e-7)


@pytest.fixture
def logits(rng):
    return rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(logits, temperature):
    student, teacher = logits

    def formula(s):
        p, q = softmax(teacher / temperature), softmax(s / temperature)
        return temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()

    check_loss(KD(temperature), student, teacher, formula)


@pytest.mark.parametrize("dropped", ["renormalize", "bucket"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_with_dropped_classes(logits, rng, temperature, dropped):
    student, teacher = logits
    kept = rng.random((6, 5)) < 0.5
    kept[np.arange(6), teacher.argmax(axis=1)] = True
    kept[0] = np.arange(5) == teacher[0].argmax()  # one class alone still teaches
    kept[1] = True  # nothing dropped: plain KD

    def formula(s):
        total = 0.0
        for row in range(6):
            p, q = softmax(teacher[row : row + 1] / temperature)[0], softmax(s[row : row + 1] / temperature)[0]
            if dropped == "renormalize":
                p = np.where(kept[row], p, 0) / p[kept[row]].sum()
            elif not kept[row].all():
                p, q = (np.append(x[kept[row]], x[~kept[row]].sum()) for x in (p, q))
            total += sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(len(p)) if p[k] > 0)
        return temperature**2 * total / 6

    check_loss(KD(temperature, dropped), student, teacher, formula, torch.from_numpy(kept))


def test_what_is_dropped_does_not_teach_its_split(logits):
    """With a bucket, moving the student's probability among the dropped classes changes nothing."""
    student, teacher = (torch.tensor(x) for x in logits)
    kept = torch.zeros(6, 5, dtype=torch.bool)
    kept[:, :2] = True
    moved = student.clone()
    moved[:, 2:] = student[:, [3, 4, 2]]
    values = [KD(2.0, "bucket")(Outputs(s), Outputs(teacher, {}, kept)).item() for s in (student, moved)]
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_relation(logits, of):
    student, teacher = logits

    def psi(x):
        t = softmax(x) if of == "probabilities" else x
        d = np.array([np.linalg.norm(t[i] - t[j]) for i in range(6) for j in range(i + 1, 6)])
        return d / d.mean()

    def formula(s):
        gap = np.abs(psi(s) - psi(teacher))
        return np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()

    check_loss(Relation(of), student, teacher, formula)


def test_relation_does_not_change_with_the_scale_of_logits(logits):
    student, teacher = (torch.tensor(x) for x in logits)
    once = Relation("logits")(Outputs(student), Outputs(teacher))
    assert Relation("logits")(Outputs(7 * student), Outputs(0.1 * teacher)).item() == pytest.approx(once.item())


def features(rng, *shapes):
    return {
        name: torch.tensor(rng.normal(size=s), dtype=torch.float32)
        for name, s in zip(("first", "last"), shapes, strict=True)
    }


def outputs(feats):
    return Outputs(torch.zeros(4, 3), feats)


def test_explicit_is_the_mean_absolute_difference_at_both_places(rng):
    ours, theirs = (features(rng, (4, 2, 3, 3), (4, 6)) for _ in range(2))
    for feature in ours.values():
        feature.requires_grad_(True)
    loss = Explicit()
    loss.setup(outputs(ours), outputs(theirs))
    assert not list(loss.parameters())
    value = loss(outputs(ours), outputs(theirs))
    expected = sum(np.abs(ours[k].detach().numpy() - theirs[k].numpy()).mean() for k in ours)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    for k, feature in ours.items():
        sign = np.sign(feature.detach().numpy() - theirs[k].numpy())
        np.testing.assert_allclose(feature.grad.numpy(), sign / sign.size, rtol=1e-5)


def test_explicit_projects_pools_and_averages(rng):
    ours = features(rng, (4, 2, 8, 8), (4, 3, 5, 5))
    theirs = features(rng, (4, 5, 4, 4), (4, 6))
    loss = Explicit()
    loss.setup(outputs(ours), outputs(theirs))
    with torch.no_grad():
        value = loss(outputs(ours), outputs(theirs)).item()
    pooled = ours["first"].numpy().reshape(4, 2, 4, 2, 4, 2).mean(axis=(3, 5))
    weight = loss.projections["first"].weight.detach().numpy()[:, :, 0, 0]
    first = np.abs(np.einsum("oc,bchw->bohw", weight, pooled) - theirs["first"].numpy()).mean()
    layer = loss.projections["last"]
    averaged = ours["last"].numpy().mean(axis=(2, 3)) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    assert value == pytest.approx(first + np.abs(averaged - theirs["last"].numpy()).mean(), rel=1e-5)


def test_explicit_refuses_tokens(rng):
    tokens = features(rng, (4, 7, 5), (4, 6))
    with pytest.raises(RequestError, match="'first' has shape"):
        Explicit().setup(outputs(tokens), outputs(tokens))


@pytest.mark.parametrize("loss", [KD(), KD(1.0), KD(1.0, "renormalize"), Relation(), Relation("logits")], ids=repr)
class TestEveryLossOfOutputs:
    def test_is_zero_at_equality(self, loss, logits):
        x = torch.tensor(logits[0])
        assert loss(Outputs(x), Outputs(x)).item() == pytest.approx(0, abs=1e-12)

    def test_does_not_depend_on_the_batchs_order(self, loss, logits):
        student, teacher = (torch.tensor(x) for x in logits)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        once = loss(Outputs(student), Outputs(teacher))
        assert loss(Outputs(student[order]), Outputs(teacher[order])).item() == pytest.approx(once.item())

    @pytest.mark.parametrize("case", ["far", "two", "one", "same"])
    def test_is_finite_with_its_gradient(self, loss, case):
        x = {
            "far": torch.tensor([[200.0, 0, -200], [-200, 200, 0], [0, 0, 0]]),
            "two": torch.tensor([[3.0, -1], [0, 2]]),
            "one": torch.tensor([[1.0, 2, 3]]),
            "same": torch.ones(4, 3),
        }[case]
        student = x.flip(1).clone().requires_grad_(True)
        kept = x == x.max(dim=1, keepdim=True).values
        for mask in (None, kept):
            value = loss(Outputs(student), Outputs(x, {}, mask))
            value.backward()
            assert value.isfinite()
            assert student.grad.isfinite().all()


def test_bf16_features_are_compared_in_float32(rng):
    ours, theirs = features(rng, (4, 2, 3, 3), (4, 6)), features(rng, (4, 2, 3, 3), (4, 6))
    loss = Explicit()
    loss.setup(outputs(ours), outputs(theirs))
    exact = loss(outputs(ours), outputs(theirs))
    low = loss(
        outputs({k: v.bfloat16() for k, v in ours.items()}), outputs({k: v.bfloat16() for k, v in theirs.items()})
    )
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02)


def test_kd_refuses_a_temperature():
    with pytest.raises(RequestError, match="temperature=0"):
        KD(0.0)
