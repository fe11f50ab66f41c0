from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd.distill.losses import KD
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError

LOSSES = [KD(), KD(1.0), KD(1.0, "renormalize"), KD(hard=0.5)]


def kl(p, q):
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(logits, check_formula, softmax, temperature):
    student, teacher = logits

    def formula(arrays):
        p, q = softmax(teacher / temperature), softmax(arrays["logits"] / temperature)
        return temperature**2 * np.mean([kl(p[i], q[i]) for i in range(6)])

    check_formula(KD(temperature), {"logits": student}, {"logits": teacher}, formula)


def test_the_hard_part_is_the_teachers_most_probable_class_at_temperature_1(logits, check_formula, softmax):
    student, teacher = logits

    def formula(arrays):
        p, q = softmax(teacher / 3), softmax(arrays["logits"] / 3)
        soft = np.mean([kl(p[i], q[i]) for i in range(6)])
        hard = -np.mean([np.log(softmax(arrays["logits"])[i, teacher[i].argmax()]) for i in range(6)])
        return 9 * soft + 0.5 * hard

    check_formula(KD(3.0, hard=0.5), {"logits": student}, {"logits": teacher}, formula)


@pytest.mark.parametrize("dropped", ["renormalize", "bucket"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_with_dropped_classes(logits, rng, check_formula, softmax, temperature, dropped):
    student, teacher = logits
    kept = rng.random((6, 5)) < 0.5
    kept[np.arange(6), teacher.argmax(axis=1)] = True
    kept[0] = np.arange(5) == teacher[0].argmax()  # one class alone still teaches
    kept[1] = True  # nothing dropped: plain KD

    def formula(arrays):
        total = 0.0
        for row in range(6):
            p, q = (softmax(x[row : row + 1] / temperature)[0] for x in (teacher, arrays["logits"]))
            if dropped == "renormalize":
                p = np.where(kept[row], p, 0) / p[kept[row]].sum()
            elif not kept[row].all():
                p, q = (np.append(x[kept[row]], x[~kept[row]].sum()) for x in (p, q))
            total += kl(p, q)
        return temperature**2 * total / 6

    loss = KD(temperature, dropped)
    mask = torch.from_numpy(kept)
    check_formula(lambda s, t: loss(s, replace(t, kept=mask)), {"logits": student}, {"logits": teacher}, formula)


def test_what_is_dropped_does_not_teach_its_split(logits):
    """With a bucket, moving the student's probability among the dropped classes changes nothing."""
    student, teacher = (torch.tensor(x) for x in logits)
    kept = torch.zeros(6, 5, dtype=torch.bool)
    kept[:, :2] = True
    moved = student.clone()
    moved[:, 2:] = student[:, [3, 4, 2]]
    values = [KD(2.0, "bucket")(Outputs(s), Outputs(teacher, {}, kept)).item() for s in (student, moved)]
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("loss", LOSSES[:3])
def test_it_is_zero_at_equality(loss, logits, check_zero_at_equality):
    check_zero_at_equality(loss, logits[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_it_does_not_depend_on_the_batchs_order(loss, logits, check_permutation):
    check_permutation(loss, *logits)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_finite_with_its_gradient(loss, extreme, check_finite):
    student, teacher = extreme
    for mask in (None, teacher.logits == teacher.logits.max(dim=1, keepdim=True).values):
        check_finite(loss, student, replace(teacher, kept=mask))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"temperature": 0.0}, "temperature=0"), ({"temperature": 1e999}, "finite"), ({"hard": -0.1}, "hard=-0.1")],
)
def test_it_refuses(options, said):
    with pytest.raises(RequestError, match=said):
        KD(**options)
