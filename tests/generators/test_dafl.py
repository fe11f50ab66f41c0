"""DAFL: what it is, and that its generator learns what its terms ask for."""

import torch

from dfkd.generators.terms import activation, class_entropy, one_hot


def test_it_stands_what_every_method_has_to(check_method):
    check_method("dafl:latent=10,width=4")


def test_the_loss_is_the_weighted_sum_of_its_terms(make):
    method = make("dafl:latent=10,width=4,one_hot=0.5,activation=0.3,entropy=2")
    again = make("dafl:latent=10,width=4,one_hot=0.5,activation=0.3,entropy=2")
    answer = again.teach(again.make(again.task.batch))
    loss = 0.5 * one_hot(answer.logits) + 0.3 * activation(answer.features["last"]) + 2 * class_entropy(answer.logits)
    loss.backward()
    expected = [p.grad for p in again.network.parameters()]
    method.update(None)
    for parameter, gradient in zip(method.network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_the_generator_learns_to_be_sure_in_all_classes(make):
    method = make("dafl:latent=10,width=8,lr=0.01")
    first = method.update(None)
    for _ in range(60):
        last = method.update(None)
    assert last["one_hot"] < 0.7 * first["one_hot"]
    assert last["class_entropy"] < -0.7
