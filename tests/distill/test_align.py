import numpy as np
import pytest
import torch
from torch import nn

from dfkd.distill import align
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_full_is_at_least_float32(dtype):
    x = torch.ones(2, dtype=dtype)
    assert align.full(x).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (align.full(x) is x) == (dtype in (torch.float32, torch.float64))


def test_check_shape__names_the_tap_and_a_hint():
    vector, tokens, image = torch.ones(2, 3), torch.ones(2, 3, 4), torch.ones(2, 3, 4, 4)
    align.check_shape("first", vector, image)
    with pytest.raises(RequestError, match=r"^the feature 'first' has shape \[2, 3, 4\].*student_taps"):
        align.check_shape("first", image, tokens)
    with pytest.raises(RequestError, match=r"shape \[2, 3\].* \[batch, channels, height, width\];"):
        align.check_shape("stage1", image, vector, dimensions=(4,))


def test_maps_are_pooled_to_the_smaller_resolution_on_each_axis(rng):
    ours, theirs = rng.normal(size=(2, 3, 8, 4)), rng.normal(size=(2, 5, 4, 6))
    found = align.same_size(torch.tensor(ours), torch.tensor(theirs))
    np.testing.assert_allclose(found[0].numpy(), ours.reshape(2, 3, 4, 2, 4, 1).mean(axis=(3, 5)))
    # from 6 columns to 4: column j averages those from floor(6 j / 4) to ceil(6 (j + 1) / 4)
    columns = [theirs[..., slice(*ends)].mean(axis=3) for ends in ((0, 2), (1, 3), (3, 5), (4, 6))]
    np.testing.assert_allclose(found[1].numpy(), np.stack(columns, axis=3))


def test_maps_of_one_resolution_are_returned_as_they_are():
    ours, theirs = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
    found = align.same_size(ours, theirs)
    assert found[0] is ours
    assert found[1] is theirs


def test_a_map_is_averaged_and_a_vector_is_not(rng):
    image, vector = rng.normal(size=(2, 3, 4, 5)), torch.ones(2, 3)
    np.testing.assert_allclose(align.averaged(torch.tensor(image)).numpy(), image.sum(axis=(2, 3)) / 20)
    assert align.averaged(vector) is vector


def test_a_projection_is_made_where_widths_differ_or_it_is_wanted():
    image, vector = torch.ones(2, 3, 4, 4), torch.ones(2, 3)
    assert isinstance(align.projection(image, 3), nn.Identity)
    for feature, kind in ((image, nn.Conv2d), (vector, nn.Linear)):
        for width, always in ((5, False), (3, True)):
            layer = align.projection(feature, width, always=always)
            assert isinstance(layer, kind)
            assert layer.bias is None
            assert layer(feature).shape == (2, width, *feature.shape[2:])
    assert align.projection(vector, 5, bias=True).bias is not None
    assert align.projection(image, 5, bias=True).bias is not None


def test_a_projection_of_a_map_mixes_its_channels_pixel_by_pixel(rng):
    image = rng.normal(size=(2, 3, 4, 5))
    layer = align.projection(torch.tensor(image), 6).double()
    expected = np.einsum("oc,bchw->bohw", layer.weight.detach().numpy()[:, :, 0, 0], image)
    np.testing.assert_allclose(layer(torch.tensor(image)).detach().numpy(), expected)


def test_projections_are_drawn_from_torchs_random_state():
    layers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        layers.append(align.projection(torch.ones(2, 3), 5).weight)
    assert layers[0].equal(layers[1])
    assert not layers[0].equal(layers[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_in_the_features_precision_and_its_result_is_full(rng, dtype):
    feature = torch.tensor(rng.normal(size=(4, 6)), dtype=dtype)
    layer, seen = nn.Linear(6, 3), []
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    out = align.apply(layer, feature)
    assert seen == [dtype]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, layer(feature.float()), rtol=0.02, atol=0.02)
    out.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_float64_stays():
    assert align.apply(nn.Linear(6, 3).double(), torch.ones(4, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (1, 3, 2, 1), (2, 3, 1, 1)])
def test_batch_norm_is_by_the_batch_in_training_and_evaluation_alike(rng, shape):
    x = rng.normal(size=shape) * 3 + 1
    layer = align.BatchNorm(3).double()
    mean, variance = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    for training in (True, False):
        found = layer.train(training)(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(found, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-6)
    assert not list(layer.buffers())


def test_batch_norm_refuses_one_value_per_channel():
    with pytest.raises(RequestError, match="give a --batch-size of 2 or more"):
        align.BatchNorm(3)(torch.ones(1, 3, 1, 1))


def test_a_connector_projects_and_normalizes(rng):
    x = rng.normal(size=(4, 3, 5, 5))
    layer = align.connector(torch.tensor(x), 6).double()
    y = np.einsum("oc,bchw->bohw", layer[0].weight.detach().numpy()[:, :, 0, 0], x)
    mean, variance = (f(y, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    expected = (y - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, rtol=1e-6, atol=1e-9)


def of_stages(*sizes, shape=(4, 4)):
    """Outputs with a map of that many channels for every stage, not in their order."""
    maps = {f"stage{i}": torch.full((2, size, *shape), float(i)) for i, size in enumerate(sizes, start=1)}
    return Outputs(torch.zeros(2, 3), dict(reversed(maps.items())) | {"last": torch.ones(2, 7)})


def test_maps_of_a_group_are_paired_from_the_shallowest():
    pairs = align.map_pairs("stage", of_stages(*range(1, 12)), of_stages(*range(21, 32)))
    assert [[len(x[0]) for x in pair] for pair in pairs] == [[i, i + 20] for i in range(1, 12)]


def test_a_group_that_is_no_map_is_refused():
    with pytest.raises(RequestError, match=r"^the feature 'stage' has shape"):
        align.map_pairs("stage", of_stages(3, shape=()), of_stages(3, shape=()))


@pytest.mark.parametrize(
    ("stage", "count", "number"), [(1, 3, 1), (3, 3, 3), ("middle", 3, 2), ("middle", 4, 2), ("last", 4, 4)]
)
def test_one_stage_by_number_or_name(stage, count, number):
    student, teacher = of_stages(*range(1, count + 1)), of_stages(*range(11, count + 11))
    found = align.one_stage(stage, student, teacher)
    assert [len(x[0]) for x in found] == [number, number + 10]


@pytest.mark.parametrize("stage", [0, 4, -1])
def test_a_stage_that_is_not_there_is_refused(stage):
    with pytest.raises(RequestError, match=f"^stage={stage} is not one of the 3 stages.*from 1 to 3"):
        align.one_stage(stage, of_stages(1, 2, 3), of_stages(1, 2, 3))


def test_vectors_are_full_and_maps_are_averaged(rng):
    image = rng.normal(size=(2, 3, 4, 5))
    features = {"last": torch.tensor(image), "low": torch.ones(2, 3, dtype=torch.bfloat16), "odd": torch.ones(2, 3, 4)}
    outputs = Outputs(torch.zeros(2, 3), features)
    np.testing.assert_allclose(align.vectors(outputs).numpy(), image.mean(axis=(2, 3)))
    assert align.vectors(outputs, "low").dtype == torch.float32
    with pytest.raises(RequestError, match=r"^the feature 'odd'"):
        align.vectors(outputs, "odd")


def test_unit_rows_have_length_one_and_zeros_stay_with_a_tame_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]], requires_grad=True)
    found = align.unit(rows)
    np.testing.assert_allclose(found.detach().numpy(), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
    (gradient,) = torch.autograd.grad(found[:2].sum(), rows)
    np.testing.assert_allclose(gradient[:2].numpy(), [[0.032, -0.024], [1, 1]], rtol=1e-5)
