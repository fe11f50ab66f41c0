"""NAYER: where the embeddings come from, the noisy layers, the classes of a batch, and the generator's life."""

import itertools

import numpy as np
import pytest
import torch

from dfkd.generators.nayer import NoisyGenerator
from dfkd.system.errors import RequestError

SMALL = "nayer:hidden=6,width=4,steps=2,warmup=1"


def test_it_stands_what_every_method_has_to(check_method):
    check_method(SMALL + ",life=1", use_student=True)


def test_an_image_is_its_normalized_embedding_through_the_noisy_layer_of_its_turn():
    torch.manual_seed(0)
    network = NoisyGenerator(5, 7, layers=3, each=4, generator=torch.nn.Unflatten(1, (7, 1, 1))).double()
    torch.nn.init.normal_(network.noise)
    torch.nn.init.normal_(network.bias)
    network.normalized.weight.data.uniform_(0.5, 2)
    network.normalized.bias.data.normal_()
    x = np.random.default_rng(0).normal(size=(10, 5))
    scale, shift, noise, bias = (
        p.detach().numpy() for p in (network.normalized.weight, network.normalized.bias, network.noise, network.bias)
    )
    normal = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * scale + shift
    expected = np.stack([row @ noise[i // 4] + bias[i // 4, 0] for i, row in enumerate(normal)])
    assert np.allclose(network(torch.tensor(x)).flatten(1).detach().numpy(), expected)


def test_every_turn_has_all_classes_and_the_rest_is_drawn(make):
    method = make(SMALL, batch=10)
    labels = method.labels(10)
    assert labels[:8].tolist() == [0, 1, 2, 3] * 2
    assert len(set(labels[8:].tolist())) == 2
    assert method.network.noise.shape[0] == 3
    assert {tuple(method.labels(10)[8:].tolist()) for _ in range(20)} > {tuple(labels[8:].tolist())}


def test_no_two_images_are_the_same_also_where_classes_are_wanted_unevenly(make):
    for task in ({}, {"wanted": torch.tensor([0.0, 0, 9, 1])}):
        method = make(SMALL, **task)
        method.update(None)
        method.update(None)
        assert torch.pdist(method.bank.pixels.flatten(1).float()).min() > 0
    assert set(method.bank.labels.tolist()) <= {2, 3}


def test_the_embeddings_are_the_rows_of_the_last_linear_layer(make):
    method = make(SMALL)
    assert torch.equal(method.embeddings, method.task.teacher.model.module.linear.weight)
    assert not method.embeddings.requires_grad
    method.update(None)
    assert torch.equal(method.underway.latent, method.embeddings[method.underway.labels])


def test_without_a_linear_layer_they_are_orthogonal(make):
    method = make(SMALL, architecture="tests.generators.test_nayer.convolutional")
    e = method.embeddings.double()
    assert torch.allclose(e @ e.T, torch.eye(4, dtype=torch.float64), atol=1e-6)
    assert torch.equal(e, make(SMALL, architecture="tests.generators.test_nayer.convolutional").embeddings.double())


def convolutional(num_classes, in_channels):
    """A network whose classes come from a convolution."""
    layers = [torch.nn.Conv2d(in_channels, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU()]
    return torch.nn.Sequential(
        *layers, torch.nn.Conv2d(5, num_classes, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


def test_embeddings_of_ones_own_are_read(make, tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 9))
    np.save(tmp_path / "names.npy", rows)
    method = make(f"{SMALL},embeddings={tmp_path / 'names.npy'}")
    assert np.allclose(method.embeddings.numpy(), rows)
    assert method.update(None)["one_hot"].isfinite()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((3, 9)), r"has \[3, 9\]; save numbers \[4, width\]"),
        (np.zeros(4), r"has \[4\]"),
        (np.full((4, 2), np.nan), "not finite numbers"),
        (np.full((4, 2), "a"), "not finite numbers"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(make, tmp_path, values, said):
    np.save(tmp_path / "e.npy", values)
    with pytest.raises(RequestError, match=said) as error:
        make(f"{SMALL},embeddings={tmp_path / 'e.npy'}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_array_is_refused(make, tmp_path):
    (tmp_path / "e.npy").write_text("cat, dog")
    for name in ("e.npy", "missing.npy"):
        with pytest.raises(RequestError, match=r"cannot be read as \.npy"):
            make(f"{SMALL},embeddings={tmp_path / name}")


def test_the_noise_is_drawn_anew_and_the_generator_lives_for_some_batches(make):
    method = make(SMALL + ",life=2,lr=1e-6")
    noise, generators = [], []
    before = torch.get_rng_state()
    for _ in range(5):
        method.update(None)
        noise.append(method.network.noise.detach().clone())
        generators.append(method.network.generator[0].weight.detach().clone())
        method.update(None)
    assert torch.equal(torch.get_rng_state(), before)
    assert noise[0].std().item() == pytest.approx(1, rel=0.1)
    assert all((a - b).abs().max() > 1 for a, b in itertools.pairwise(noise))
    moved = [(a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(generators)]
    assert moved == [False, True, False, True]


@pytest.mark.parametrize("option", ["life=0", "hidden=0"])
def test_options_out_of_range_are_named(make, option):
    with pytest.raises(RequestError, match=f"nayer: {option} is not at least 1"):
        make("nayer:" + option)
