"""DeepInversion and its adaptive form: the batches, the terms, and that pixels become what the teacher asks for."""

import numpy as np
import pytest
import torch

from dfkd.generators.deepinversion import DeepInversion, competition, total_variation
from dfkd.system.errors import RequestError

SMALL = "deepinversion: steps=2,batches=1"
ADAPTIVE = "adaptivedeepinversion:steps=2,batches=1"


@pytest.mark.parametrize("text", [SMALL, ADAPTIVE])
def test_it_stands_what_every_method_has_to(check_method, text):
    check_method(text, updates=3)


def test_only_the_adaptive_form_asks_the_student(make, student):
    assert not make(SMALL).needs_student and make(ADAPTIVE).needs_student
    assert set(make(ADAPTIVE).update(student)) - set(make(SMALL).update(None)) == {"competition"}


def test_batches_are_made_before_the_student_begins_and_in_its_turns(make):
    method = make("deepinversion: steps=3,batches=2,every=7")
    assert (method.first, method.turns, method.every, method.updates_for(90)) == (6, 3, 7, 9)
    for _ in range(method.first):
        method.update(None)
    assert len(method.bank) == 80
    with pytest.raises(RequestError, match="deepinversion: steps=0 is not at least 1"):
        make("deepinversion: steps=0")


def test_a_batch_begins_without_what_the_optimizer_knew_of_the_last(make):
    method = make(SMALL)
    for _ in range(3):
        method.update(None)
    assert [state["step"].item() for state in method.optimizer.state.values()] == [1]


def test_a_teacher_without_batch_statistics_is_refused(make):
    task = make(SMALL).task
    for layer in task.teacher.model.module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None
    with pytest.raises(RequestError, match=r"^it reads the statistics of the teacher's BatchNorm layers"):
        DeepInversion(task)


def test_the_loss_is_the_weighted_sum_of_its_terms(make, student):
    method = make("adaptivedeepinversion:jitter=0,one_hot=0.5,statistics=2,variation=0.1,l2=0.2,competition=3")
    metrics = method.update(student)
    view = make("deepinversion: jitter=0", seed=0).canvas.view
    assert not view.any(), "nothing is drawn before the first update"
    again = make("deepinversion: jitter=0")
    again.update(None)
    labels = again.canvas.labels
    x = start(again).requires_grad_()
    with again._statistics.watched():
        logits = again.task.teacher.answer(x).logits
    distances = torch.stack(again._statistics.distances()).sum()
    chosen = logits.log_softmax(dim=1)[torch.arange(len(labels)), labels]
    js = competition(logits, student(x).logits)
    loss = -0.5 * chosen.mean() + 2 * distances + 0.1 * total_variation(x) + 0.2 * x.square().sum().sqrt() + 3 * js
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(method.canvas.view.grad, gradient, atol=1e-5)
    assert metrics["statistics"].item() == pytest.approx(distances.item(), rel=1e-5)


def start(method):
    """The noise that a method's first batch begins with."""
    noise = torch.randn(method.canvas.view.shape, generator=torch.Generator().manual_seed(method.task.seed))
    return noise.clamp(-1, 1)  # what pixels can hold at a mean and deviation of 0.5


def test_the_batch_is_seen_shifted_as_a_whole(make):
    method = make("deepinversion: jitter=2")
    method.update(None)
    whole = method.canvas.view.detach()
    rolls = {(i, j): whole.roll((i, j), dims=(2, 3)) for i in range(-2, 3) for j in range(-2, 3)}
    seen = set()
    for _ in range(60):
        shifted = method._jittered().detach()
        matching = [shift for shift, rolled in rolls.items() if torch.equal(rolled, shifted)]
        assert len(matching) == 1
        seen.update(matching)
    assert {i for i, _ in seen} == {j for _, j in seen} == {-2, -1, 0, 1, 2}


FREE = "steps=20,batches=1,lr=0.1,jitter=0"  # shifts of few pixels undo what so few steps do to so small an image


def test_pixels_become_the_classes_that_are_asked_for(make):
    method = make(f"deepinversion: {FREE},statistics=0")
    first = method.update(None)["one_hot"]
    for _ in range(19):
        last = method.update(None)["one_hot"]
    assert last < 0.6 * first and method.canvas.view.abs().max() <= 1
    answered = method.task.teacher(method.bank.pixels).logits.argmax(dim=1)
    assert (answered == method.bank.labels).float().mean() > 0.9


def test_pixels_come_closer_to_the_statistics(make):
    method = make(f"deepinversion: {FREE},one_hot=0")
    first = method.update(None)["statistics"]
    for _ in range(19):
        last = method.update(None)["statistics"]
    assert last < 0.99 * first, "most is out of reach: what the small teacher remembers was drawn, not seen"


def test_competition_finds_what_the_student_does_not_know(make, student):
    method = make(f"adaptivedeepinversion:{FREE},one_hot=0,statistics=0")
    first = method.update(student)["competition"]
    for _ in range(19):
        last = method.update(student)["competition"]
    assert last < first - 0.02


def test_total_variation_is_that_of_four_directions(check_term):
    def formula(x):
        total, (height, width) = 0.0, x.shape[2:]
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            squares = 0.0
            for i in range(height):
                for j in range(width):
                    if i + down < height and 0 <= j + right < width:
                        squares += ((x[:, :, i + down, j + right] - x[:, :, i, j]) ** 2).sum()
            total += np.sqrt(squares)
        return total

    check_term(total_variation, formula, np.random.default_rng(0).normal(size=(2, 2, 3, 4)))
    flat = torch.zeros(1, 1, 4, 4, requires_grad=True)
    total_variation(flat).backward()
    assert flat.grad.isfinite().all()


def test_competition_is_one_minus_the_jensen_shannon_divergence(check_term):
    first, second = np.random.default_rng(0).normal(0, 4, (2, 5, 4))

    def formula(teacher, student):
        p, q = (np.exp(x / 3) / np.exp(x / 3).sum(axis=1, keepdims=True) for x in (teacher, student))
        m = (p + q) / 2
        return 1 - ((p * np.log(p / m)).sum(axis=1) + (q * np.log(q / m)).sum(axis=1)).mean() / 2

    check_term(lambda x: competition(x, torch.from_numpy(second)), lambda x: formula(x, second), first)
    check_term(lambda x: competition(torch.from_numpy(first), x), lambda x: formula(first, x), second)
    apart = torch.tensor([[900.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 900.0]], dtype=torch.float64)
    assert competition(*apart).item() == pytest.approx(1 - np.log(2))
