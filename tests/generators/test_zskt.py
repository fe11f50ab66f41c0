"""ZSKT: its turns, its batch, its loss, and that the generator finds where teacher and student differ."""

import pytest
import torch

from dfkd.generators.generator import noise
from dfkd.system.errors import RequestError

SMALL = "zskt: latent=10,width=4"


def test_it_stands_what_every_method_has_to(check_method):
    check_method(SMALL)


def test_it_takes_one_step_to_every_so_many_of_the_student(make):
    assert (make(SMALL).every, make(SMALL + ",every=3").every) == (10, 3)
    with pytest.raises(RequestError, match="zskt: every=0 is not at least 1"):
        make(SMALL + ",every=0")


def test_the_loss_is_minus_the_divergence(make, student):
    method, again = make(SMALL), make(SMALL)
    images = again.make(again.task.batch)
    p, q = (x.logits.softmax(dim=1) for x in (again.teach(images), student(again.normalize(images))))
    loss = -(p * (p / q).log()).sum(dim=1).mean()
    loss.backward()
    expected = [p.grad for p in again.network.parameters()]
    student.module.zero_grad(set_to_none=True)
    assert torch.allclose(method.update(student)["divergence"], loss, atol=1e-6)
    for parameter, gradient in zip(method.network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_the_student_has_the_batch_of_the_step_as_the_generator_makes_it_afterwards(make, student):
    method, again = make(SMALL), make(SMALL)
    latent = noise(method.task.batch, 10, again.random)
    random = torch.Generator()
    before = method.sample(7, random)
    method.update(student)
    with torch.no_grad():
        expected = method.network(latent)
    after = method.sample(7, random)
    assert torch.allclose(after, expected[:7], atol=1e-6) and not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(method.sample(7, random), after), "until the next step"
    assert method.sample(method.task.batch + 3, random).shape[0] == method.task.batch + 3
    assert not torch.equal(method.images(0, 7), after), "a folder of images needs more than one batch"


def test_the_generator_learns_where_they_differ(make, student):
    method = make("zskt: latent=10,width=8,lr=0.01")
    first = method.update(student)["divergence"]
    for _ in range(40):
        last = method.update(student)["divergence"]
    assert last < 1.2 * first < 0
