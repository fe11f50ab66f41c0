"""Contrastive representation distillation: the same memories and the same draws, written with loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.distill.losses import CRD
from dfkd.distill.setting import Setting
from dfkd.system.errors import RequestError

IMAGES = 11
ROWS = [4, 0, 9]
DRAWN = [3, 9, 3, 7, 0, 10]


@pytest.fixture
def pair(rng):
    return {"last": rng.normal(size=(3, 4))}, {"last": rng.normal(size=(3, 2))}


@pytest.fixture
def make(outputs, monkeypatch):
    """A loss in float64 after its setup, whose draws are given."""

    def built(student, teacher, images=IMAGES, drawn=DRAWN, **options):
        torch.manual_seed(0)
        loss = CRD(**{"negatives": len(drawn or DRAWN), "width": 3, **options})
        loss.bind(setting(images))
        with torch.no_grad():
            loss.setup(outputs(student), outputs(teacher))
        if drawn is not None:
            monkeypatch.setattr(loss, "draw", lambda: torch.tensor(drawn))
        return loss.double()

    return built


def setting(images):
    return Setting(lambda view: None, lambda view: None, None, None, images)


class Rows(nn.Module):
    """The loss as a function of the two outputs, whose samples are images of these rows."""

    def __init__(self, loss, rows=ROWS):
        super().__init__()
        self.loss, self.rows = loss, torch.tensor(rows)

    def forward(self, ours, theirs):
        return self.loss(ours, replace(theirs, rows=self.rows[: len(theirs.logits)]))


def embed(state, side, x):
    rows = x @ state[f"{side}_embedding.weight"].T + state[f"{side}_embedding.bias"]
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def formula_of(loss, student, teacher, positive="batch", temperature=0.07, rows=ROWS, drawn=DRAWN, z=None):
    """The loss from the parameters and memories of now; the constants of each side are what they are now."""
    state = {name: value.numpy().copy() for name, value in loss.state_dict().items()}
    k, m = len(drawn), IMAGES
    frozen = {"student": embed(state, "student", student["last"]), "teacher": embed(state, "teacher", teacher["last"])}
    scores = {}
    for side, other in (("student", "teacher"), ("teacher", "student")):
        memory = state[f"{other}_memory"]
        scores[side] = [[np.exp(a @ memory[j] / temperature) for j in drawn] for a in frozen[side]]
    z = z or {side: m * np.mean(values) for side, values in scores.items()}

    def formula(arrays):
        now = {name: value.numpy() for name, value in loss.state_dict().items()}
        anchors = {
            "student": embed(now, "student", arrays["last"]),
            "teacher": embed(now, "teacher", teacher["last"]),
        }
        total = 0.0
        for side, other in (("student", "teacher"), ("teacher", "student")):
            memory = state[f"{other}_memory"]

            def h(a, b, side=side):
                p = np.exp(a @ b / temperature) / z[side]
                return p / (p + k / m)

            for i, a in enumerate(anchors[side]):
                partner = frozen[other][i] if positive == "batch" else memory[rows[i]]
                total -= np.log(h(a, partner)) / len(rows)
                others = [j for j in drawn if j != rows[i]]
                total -= m / (m - 1) * sum(np.log(1 - h(a, memory[j])) for j in others) / len(rows)
        return total

    return formula


@pytest.mark.parametrize("positive", ["batch", "memory"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_value_and_gradients(pair, make, check_formula, positive, temperature):
    student, teacher = pair
    options = {"positive": positive, "temperature": temperature}
    loss = make(student, teacher, **options)
    check_formula(Rows(loss), student, teacher, formula_of(loss, student, teacher, **options), own=True)


def test_later_steps_use_the_first_steps_constant_and_the_moved_memories(pair, make, outputs, check_formula, rng):
    student, teacher = pair
    loss = make(student, teacher)
    Rows(loss, [1, 2, 3])(outputs({"last": rng.normal(size=(3, 4))}), outputs({"last": rng.normal(size=(3, 2))}))
    z = dict(zip(("student", "teacher"), np.exp(loss.log_z.numpy()), strict=True))
    check_formula(Rows(loss), student, teacher, formula_of(loss, student, teacher, z=z))
    assert np.exp(loss.log_z.numpy()).tolist() == list(z.values())


def test_memories_move_by_momentum_and_only_those_of_the_batch(pair, make, outputs):
    student, teacher = pair
    loss = make(student, teacher, momentum=0.25)
    before = {name: value.numpy().copy() for name, value in loss.state_dict().items()}
    Rows(loss)(outputs(student), outputs(teacher))
    for side, features in (("student", student), ("teacher", teacher)):
        expected = before[f"{side}_memory"].copy()
        for row, new in zip(ROWS, embed(before, side, features["last"]), strict=True):
            moved = 0.25 * expected[row] + 0.75 * new
            expected[row] = moved / np.sqrt((moved**2).sum())
        np.testing.assert_allclose(getattr(loss, f"{side}_memory").numpy(), expected, rtol=1e-6)


def test_an_image_that_is_in_the_batch_twice_remembers_the_mean(pair, make, outputs):
    student, teacher = pair
    loss = make(student, teacher, momentum=0.0)
    before = {name: value.numpy().copy() for name, value in loss.state_dict().items()}
    Rows(loss, [5, 2, 5])(outputs(student), outputs(teacher))
    new = embed(before, "student", student["last"])
    mean = (new[0] + new[2]) / 2
    np.testing.assert_allclose(loss.student_memory[5].numpy(), mean / np.sqrt((mean**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(loss.student_memory[2].numpy(), new[1], rtol=1e-6)


def test_nothing_moves_without_gradients(pair, make, outputs):
    student, teacher = pair
    loss = make(student, teacher)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with torch.no_grad():
        tried = Rows(loss)(outputs(student), outputs(teacher)).item()
    for name, value in loss.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert loss.log_z.isnan().all()
    assert Rows(loss)(outputs(student), outputs(teacher)).item() == pytest.approx(tried)


def test_draws_are_uniform_over_all_images_and_repeat_with_the_seed(pair, make):
    loss = make(*pair, drawn=None, images=5, negatives=4)
    torch.manual_seed(1)
    found = torch.stack([loss.draw() for _ in range(2000)])
    assert found.shape == (2000, 4)
    np.testing.assert_allclose(np.bincount(found.flatten(), minlength=5) / found.numel(), 0.2, atol=0.02)
    torch.manual_seed(1)
    assert torch.equal(loss.draw(), found[0])


def test_one_set_of_negatives_for_the_batch_is_unbiased(pair, make, outputs, monkeypatch):
    """The mean over all draws is that of a draw from the other images, for each image of the batch."""
    student, teacher = pair
    loss = make(student, teacher, negatives=1, drawn=[0])
    state = {name: value.numpy() for name, value in loss.state_dict().items()}
    embedded = {side: embed(state, side, x["last"]) for side, x in (("student", student), ("teacher", teacher))}
    loss.log_z.fill_(6.0)  # of a first batch before
    found = []
    for row in range(IMAGES):
        monkeypatch.setattr(loss, "draw", lambda row=row: torch.tensor([row]))
        with torch.no_grad():
            found.append(Rows(loss)(outputs(student), outputs(teacher)).item())
    expected = 0.0
    for side, other in (("student", "teacher"), ("teacher", "student")):
        for i, row in enumerate(ROWS):
            match = IMAGES * np.exp(embedded[side][i] @ embedded[other][i] / 0.07 - 6)
            odds = [IMAGES * np.exp(embedded[side][i] @ x / 0.07 - 6) for x in state[f"{other}_memory"]]
            push = np.mean([np.log(1 + odds[j]) for j in range(IMAGES) if j != row])
            expected += (np.log(1 + 1 / match) + push) / 3
    assert np.mean(found) == pytest.approx(expected)


def test_pairs_that_match_cost_less_than_pairs_that_do_not(pair, make, outputs, rng):
    """And one embedding for all images costs more than either: there is nothing to gain in a collapse."""
    student, _ = pair
    loss = make(student, student, images=200, drawn=None, negatives=150, width=16, temperature=0.5)
    loss.teacher_embedding.load_state_dict(loss.student_embedding.state_dict())
    data = rng.normal(size=(200, 4))

    def mean_cost(ours, theirs):
        with torch.no_grad():
            memory = loss._embedded(loss.teacher_embedding, outputs({"last": theirs}))
            loss.teacher_memory.copy_(memory)
            loss.student_memory.copy_(memory)
            sides = outputs({"last": ours}), outputs({"last": theirs})
            return np.mean([Rows(loss, range(200))(*sides).item() for _ in range(20)])

    one = np.repeat(data[:1], 200, axis=0)
    right = mean_cost(data, data)
    assert right < mean_cost(np.roll(data, 1, axis=0), data)
    assert right < mean_cost(one, one)


def test_is_finite_where_features_are_degenerate(pair, make, check_survives):
    loss = make(*pair)
    with torch.no_grad():
        loss.student_embedding.bias.zero_()  # so that zeros have no direction
    check_survives(Rows(loss), *pair)
    assert all(bool(value.isfinite().all()) for value in loss.state_dict().values())


def test_a_map_is_averaged(pair, make, check_averages_maps):
    student, teacher = pair
    loss = make(student, teacher)
    with torch.no_grad():  # so that the memories stay
        check_averages_maps(Rows(loss), student, teacher)


def test_there_are_never_more_negatives_than_other_images():
    loss = CRD()
    loss.bind(setting(1000))
    assert loss.negatives == 999
    many = CRD()
    many.bind(setting(10**6))
    assert many.negatives == 16_384


def test_wrong_options_and_sources_are_refused(pair, make, outputs):
    for options, message in [
        ({"negatives": 0}, "^negatives=0"),
        ({"width": 0}, "^width=0"),
        ({"temperature": 0.0}, "^temperature=0"),
        ({"momentum": 1.0}, "^momentum=1"),
        ({"momentum": -0.1}, r"^momentum=-0\.1"),
    ]:
        with pytest.raises(RequestError, match=message):
            CRD(**options)
    with pytest.raises(RequestError, match="a generator makes new ones"):
        CRD().bind(setting(None))
    with pytest.raises(RequestError, match="there is only 1"):
        CRD().bind(setting(1))
    with pytest.raises(RequestError, match="the stored image that each view shows"):
        make(*pair)(*(outputs(side) for side in pair))
    odd = outputs({"last": np.zeros((2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        CRD().setup(odd, odd)
