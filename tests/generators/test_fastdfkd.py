"""FastDFKD: its loss, and what the common generator learns from a batch."""

import numpy as np
import torch

from dfkd.generators.generator import noise, render
from dfkd.generators.terms import adversarial, one_hot

SMALL = "fastdfkd:latent=6,width=4,steps=2,warmup=1,lr=0.01"


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def test_it_stands_what_every_method_has_to(check_method):
    check_method(SMALL, use_student=True)
    check_method(SMALL)


def test_the_loss_is_the_weighted_sum_of_its_terms(make, student):
    text = SMALL + ",momentum=0,one_hot=0.7,statistics=3,adversarial=2"
    method, again = make(text), make(text)
    for one in (method, again):
        for _ in range(2):
            one.update(student)
    labels = again.labels(again.task.batch)
    latent = noise(again.task.batch, 6, again.random).requires_grad_()
    images = render(again.common, latent, again.task)
    view = again.augmented(images)
    with again.statistics.watched():
        answer = again.teach(view)
    loss = 0.7 * one_hot(answer.logits, labels) + 3 * torch.stack(again.statistics.distances()).sum()
    loss = loss + 2 * adversarial(answer.logits, student(again.normalize(view)).logits)
    expected = torch.autograd.grad(loss, [*again.common.parameters(), latent])

    method.update(student)
    got = [p.grad for p in method.network.parameters()] + [method.underway.latent.grad]
    for gradient, other in zip(got, expected, strict=True):
        assert torch.allclose(gradient, other, atol=1e-5)


def test_a_batch_starts_from_the_common_generator_which_steps_along_the_summed_gradients(make):
    method = make(SMALL)
    before = values(method.common)
    gradients = []
    for _ in range(2):
        method.update(None)
        gradients.append([p.grad.clone() for p in method.network.parameters()])
    for start, own, after in zip(before, zip(*gradients, strict=True), method.common.parameters(), strict=True):
        summed = np.sum([g.numpy().astype(np.float64) for g in own], axis=0)
        # Adam's first step, written out: the moments over their bias corrections are g and g squared
        expected = start.numpy() - 2 * 0.01 * summed / (np.abs(summed) + 1e-8)
        strong = np.abs(summed) > 1e-5  # elsewhere the sign of a rounding error decides
        assert np.allclose(after.detach().numpy()[strong], expected[strong], atol=1e-5)
    common = values(method.common)
    seen = []
    step = method.step
    method.step = lambda loss: (seen.append(values(method.network)), step(loss))
    method.update(None)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], common, strict=True))


def test_the_common_generator_learns_to_begin_where_a_fresh_one_does_not_arrive(make):
    method = make("fastdfkd:latent=6,width=4,steps=3,warmup=1,lr=0.02,momentum=0")
    distances = [[method.update(None)["statistics"] for _ in range(3)] for _ in range(20)]
    assert distances[-1][0] < min(distances[0])
