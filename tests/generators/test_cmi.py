"""CMI: the contrast against NumPy, its views, its memory, and that each batch begins anew."""

import numpy as np
import pytest
import torch

from dfkd.generators.base import quantize
from dfkd.generators.cmi import Memory, contrast
from dfkd.system.errors import RequestError

SMALL = "cmi:latent=6,width=4,steps=2,warmup=1,lr=0.01,projected=8"


def test_it_stands_what_every_method_has_to(check_method):
    check_method(SMALL, use_student=True)


@pytest.mark.parametrize("new", [3, 5])
def test_contrast_is_the_cross_entropy_of_new_and_old_rows_apart(new):
    random = np.random.default_rng(0)
    anchors, keys = random.normal(size=(2, 5, 4))

    def formula(a):
        logits = a @ keys.T / 0.5
        loss = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
        return loss[:new].mean() + (loss[new:].mean() if new < 5 else 0)

    x = torch.tensor(anchors, requires_grad=True)
    value = contrast(x, torch.tensor(keys), new, 0.5)
    value.backward()
    assert value.item() == pytest.approx(formula(anchors))
    numeric = np.zeros_like(anchors)
    for i in np.ndindex(*anchors.shape):
        up, down = anchors.copy(), anchors.copy()
        up[i] += 1e-6
        down[i] -= 1e-6
        numeric[i] = (formula(up) - formula(down)) / 2e-6
    assert np.allclose(x.grad.numpy(), numeric, atol=1e-6)


def test_close_ups_are_parts_of_the_image_stretched(make):
    method = make(SMALL + ",flip=false", channels=3)
    places = (torch.arange(8) + 0.5) / 8
    ramp = torch.stack([places.expand(8, 8), places[:, None].expand(8, 8), torch.ones(8, 8)])
    images = ramp.expand(40, 3, 8, 8).clone().requires_grad_()
    view = method.close_up(images)
    assert torch.allclose(view[:, 2], torch.ones(40, 8, 8)), "nothing from outside of the image"
    seen_widths = view[:, 0, 0, -2] - view[:, 0, 0, 1]  # of five of eight columns, clear of the borders
    seen_heights = view[:, 1, -2, 0] - view[:, 1, 1, 0]
    width, height = seen_widths * 8 / 5, seen_heights * 8 / 5
    area = (width * height).detach()
    assert 0.2 < area.min() < 0.45 and 0.75 < area.max() < 1.05
    assert (width / height).min() > 3 / 4 - 0.05 and (width / height).max() < 4 / 3 + 0.05
    (gradient,) = torch.autograd.grad(view[:, 2].sum(), images)
    assert gradient[:, 2].sum() == pytest.approx(40 * 64, rel=1e-4)
    mirrored = make(SMALL, channels=3).close_up(images)
    turned = mirrored[:, 0, 0, -1] < mirrored[:, 0, 0, 0]
    assert 5 < turned.sum() < 35


def test_the_memory_forgets_the_oldest_and_draws_different_rows():
    memory, random = Memory(3, 5, torch.device("cpu")), torch.Generator().manual_seed(0)
    assert memory.draw(4, random).shape == (0, 2, 3)
    for start in (0.0, 3.0):
        rows = torch.arange(start, start + 3)[:, None].expand(3, 3)
        memory.add(rows, rows + 10)
    assert memory.rows[:, 0, 0].tolist() == [1, 2, 3, 4, 5]
    drawn = memory.draw(4, random)
    assert len(set(drawn[:, 0, 0].tolist())) == 4
    assert torch.equal(drawn[:, 0] + 10, drawn[:, 1])


def test_a_batch_is_remembered_and_the_next_one_told_from_it(make):
    method = make(SMALL)
    asked, draw = [], method.memory.draw

    def watch(count, random):
        asked.append(len(draw(count, torch.Generator().manual_seed(0))))
        return draw(count, random)

    method.memory.draw = watch
    for _ in range(5):
        method.update(None)
    assert asked == [0, 0, 40, 40, 80]
    assert method.memory.rows.isfinite().all() and not method.memory.rows.requires_grad


def test_a_batch_begins_with_newly_drawn_weights(make):
    method = make(SMALL)
    starts = []
    for _ in range(2):
        method.renew()
        layer = method.network[0]
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15) and not layer.bias.any()
        starts.append(layer.weight.detach().clone())
    assert not torch.equal(*starts)


def test_the_kept_images_are_those_that_are_remembered(make):
    method = make(SMALL)
    method.update(None)
    method.update(None)
    assert torch.equal(method.bank.pixels, quantize(method.underway.images))
    assert len(method.memory.rows) == len(method.bank)


@pytest.mark.parametrize("option", ["contrast=-1", "negatives=-1", "memory=0", "projected=0", "temperature=0"])
def test_options_out_of_range_are_named(make, option):
    with pytest.raises(RequestError, match=f"cmi: {option} is not"):
        make("cmi:" + option)
