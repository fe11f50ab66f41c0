"""DFAD: its turns, its loss, and that the generator finds where teacher and student differ."""

import pytest
import torch

from dfkd.system.errors import RequestError

SMALL = "dfad: latent=10,width=4"


def test_it_stands_what_every_method_has_to(check_method):
    check_method(SMALL)


def test_it_takes_one_step_to_every_so_many_of_the_student(make):
    assert (make(SMALL).every, make(SMALL + ",every=3").every) == (5, 3)
    with pytest.raises(RequestError, match="dfad: every=0 is not at least 1"):
        make(SMALL + ",every=0")


@pytest.mark.parametrize("log", [False, True])
def test_the_loss_is_minus_the_difference_or_its_logarithm(make, student, log):
    text = f"{SMALL},log={log}"
    method, again = make(text), make(text)
    images = again.make(again.task.batch)
    difference = (again.teach(images).logits - student(again.normalize(images)).logits).abs().mean()
    loss = -torch.log1p(difference) if log else -difference
    loss.backward()
    expected = [p.grad for p in again.network.parameters()]
    student.module.zero_grad(set_to_none=True)
    assert torch.allclose(method.update(student)["logit_difference"], loss)
    for parameter, gradient in zip(method.network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_the_generator_learns_where_they_differ(make, student):
    method = make("dfad: latent=10,width=8,lr=0.01")
    first = method.update(student)["logit_difference"]
    for _ in range(40):
        last = method.update(student)["logit_difference"]
    assert last < 1.2 * first < 0
