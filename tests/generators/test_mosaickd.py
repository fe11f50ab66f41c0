"""MosaicKD: its two steps, its terms, and what its discriminator sees."""

import numpy as np
import pytest
import torch

from dfkd.generators.mosaickd import PatchDiscriminator, entropy, patches
from dfkd.system.errors import RequestError

SMALL = "mosaickd:latent=10,width=4"


def test_it_stands_what_every_method_has_to(check_method):
    check_method(SMALL, real=True)


def test_it_needs_real_images(make):
    with pytest.raises(RequestError, match="it also learns from real images, and there are none"):
        make(SMALL)
    with pytest.raises(RequestError, match="every=0 is not at least 1"):
        make(SMALL + ",every=0", real=True)


def test_the_generator_descends_the_weighted_sum_after_the_discriminators_step(make, student):
    text = f"{SMALL},local=0.5,align=2,adv=3,balance=4"
    method, again = make(text, real=True), make(text, real=True)
    made = again.normalize(again.make(again.task.batch))
    real = again.normalize(again.real(again.task.batch))
    with torch.no_grad():
        ours, theirs = again.critic(made), again.critic(real)
        before = (torch.log1p(ours.exp()).sum() + torch.log1p((-theirs).exp()).sum()) / (2 * again.task.batch)
    metrics = method.update(student)
    assert metrics["discriminator"].item() == pytest.approx(before.item(), rel=1e-5)

    logits, answers = again.task.teacher.answer(made).logits, student(made).logits
    p, q = logits.softmax(dim=1), answers.softmax(dim=1)
    passing = torch.log1p((-method.critic(made)).exp()).sum() / again.task.batch  # judged after its step
    mean = p.mean(dim=0)
    loss = 0.5 * passing - 2 * (p * p.log()).sum(dim=1).mean() - 3 * (p * (p / q).log()).sum(dim=1).mean()
    (loss + 4 * (mean * mean.log2()).sum()).backward()
    for parameter, other in zip(method.network.parameters(), again.network.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, atol=1e-5)


def test_the_discriminator_learns_to_tell_patches_apart(make, student):
    method = make("mosaickd:latent=10,width=8,lr=0.003,local=0.1", real=True)

    @torch.no_grad()
    def gap():
        real, made = method.real(100), method.sample(100, torch.Generator().manual_seed(0))
        return method.critic(method.normalize(real)).mean() - method.critic(method.normalize(made)).mean()

    before = gap()
    for _ in range(20):
        method.update(student)
    assert gap() > before + 0.2


def test_a_logit_sees_ten_pixels_and_no_more():
    torch.manual_seed(0)
    critic = PatchDiscriminator(3, 4)
    for layer in critic:  # BatchNorm would mix all pixels
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.forward = lambda x: x
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    logits = critic(image)
    assert logits.shape == (1, 1, 8, 8)
    logits[0, 0, 4, 4].backward()
    rows, columns = torch.nonzero(image.grad[0].abs().sum(dim=0), as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (10, 10)


def test_patches_are_summed_and_images_averaged(check_term):
    x = np.random.default_rng(0).normal(0, 2, (3, 1, 2, 2))
    check_term(lambda x: patches(x, real=True), lambda x: -np.log(1 / (1 + np.exp(-x))).sum() / 3, x)
    check_term(lambda x: patches(x, real=False), lambda x: -np.log(1 - 1 / (1 + np.exp(-x))).sum() / 3, x)


def test_entropy_is_the_mean_over_images(check_term):
    def formula(x):
        p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        return -(p * np.log(p)).sum(axis=1).mean()

    check_term(entropy, formula, np.random.default_rng(0).normal(0, 2, (5, 4)))
    assert entropy(torch.tensor([[1000.0, 0.0, 0.0]])).item() == 0
