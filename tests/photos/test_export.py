"""`dfkd export` towards a phone: the normalization inside, fewer bits, the check against the model, the metadata."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.data.images.frame import Frame
from dfkd.formats.shards import Shards
from dfkd.models import export as exporting
from dfkd.models.exported import compare
from dfkd.models.load import load_model
from dfkd.models.reduce import Int8, to_int8
from dfkd.system.errors import RequestError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporters
CLASSES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture(scope="module")
def names(studio):
    (studio.folder / "names.txt").write_text("\n".join(CLASSES))
    return studio.folder / "names.txt"


@pytest.fixture
def export(studio, selection, names, tmp_path):
    def run(form, *more, status=0):
        out = tmp_path / f"student.{form}"
        size = ("--image-size", 72, "--crop-pct", 0.8, "--classes", names)
        assert studio.dfkd("export", "--model", studio.teacher, *size, "--out", out, *more) == status
        return out

    return run


@pytest.fixture
def views(studio, selection):
    model = load_model(studio.teacher, Input(image_size=72))
    pixels = torch.from_numpy(Shards(selection).pixels(np.arange(8)))
    with torch.no_grad():
        views = model.preprocess(pixels).contiguous()
        return pixels.permute(0, 3, 1, 2).contiguous() / 255, views, model.module(views)


def test_pt2__in_int8_is_small_agrees_and_is_read_back_as_a_model(export, studio, selection, views, capsys):
    out = export("pt2", "--dtype", "int8", "--samples", selection)
    said = capsys.readouterr().err
    rows = {row[1]: row for row in re.finditer(r"^ +(\w+) +([\d,]+) +[\d.]+ +\S+ +([\d.]+)%$", said, re.MULTILINE)}
    assert [*rows] == ["float32", "int8"]
    assert float(rows["float32"][3]) == 100
    assert int(rows["int8"][2].replace(",", "")) == out.stat().st_size
    again = load_model(str(out))
    assert (again.class_names, again.frame, again.normalize) == (CLASSES, Frame(0.8), "imagenet")
    layers = load_model(studio.teacher, Input(image_size=72)).module.modules()
    weights = [layer.weight for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert again.parameter_count() == sum(weight.numel() + len(weight) for weight in weights)  # each with a bias
    with torch.no_grad():
        found = again.module(views[1])
    assert (found - views[2]).abs().max() < 0.1 * views[2].abs().max()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pt2__takes_pixels_where_the_normalization_is_inside(export, selection, views, dtype):
    out = export("pt2", "--dtype", dtype, "--with-normalize", "--samples", selection)
    again = load_model(str(out))
    assert (again.normalize, again.class_names) == ("none", CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(again.module(views[0]), views[2], rtol=2e-2, atol=2e-2)


def test_onnx__names_the_batch_and_carries_what_the_input_is(export, selection, views, capsys):
    import onnx

    out = export("onnx", "--dtype", "int8", "--with-normalize", "--samples", selection)
    model = onnx.load(out)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, [dim.dim_value for dim in shape[1:]]) == ("batch", [3, 72, 72])
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    notes = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert (notes["classes"], notes["image_size"], notes["crop_pct"]) == ([*CLASSES], 72, 0.8)
    assert notes["mean"] == [0.485, 0.456, 0.406] and notes["normalized_inside"] is True
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert re.search(r"checked with onnx\S+.* on \d+ images of the selection", capsys.readouterr().err)


def test_safetensors__in_float16_are_a_model_with_their_names(export, studio, views):
    out = export("safetensors", "--dtype", "float16")
    again = load_model(f"cifar_resnet:depth=8,width=4@{out}")
    assert (again.class_names, again.frame, again.image_size) == (CLASSES, Frame(0.8), 72)
    with torch.no_grad():
        torch.testing.assert_close(again.module(views[1]), views[2], rtol=1e-2, atol=1e-2)


def test_export__refuses_in_one_line_what_a_format_cannot_hold(export, capsys):
    for form, options, said in (
        ("safetensors", ("--with-normalize",), "--with-normalize needs a program, and safetensors are weights alone"),
        ("safetensors", ("--dtype", "int8"), "--dtype int8 needs a program"),
        ("pt2", ("--dtype", "int8"), "--dtype int8 is calibrated on images: --samples names a selection"),
    ):
        export(form, *options, status=2)
        assert said in capsys.readouterr().err


def test_images__of_another_size_are_refused(studio, selection):
    with pytest.raises(RequestError, match="has images of 72 pixels and 3 channels, the model takes 64 and 3"):
        exporting._images(load_model(studio.teacher, Input(image_size=64)), str(selection))


def test_to_int8__folds_batch_norms_and_rounds_weights_by_channel():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    views = torch.rand(16, 3, 8, 8).split(8)
    found = to_int8(network, views, "net")
    layers = [layer for layer in found.modules() if isinstance(layer, Int8)]
    assert [layer.weight.dtype for layer in layers] == [torch.int8] * 2
    sizes = [sum(v.numel() * v.element_size() for v in net.state_dict().values()) for net in (found, network)]
    assert sizes[0] < 0.4 * sizes[1]
    assert layers[0].weight.abs().flatten(1).amax(dim=1).eq(127).all()
    with torch.no_grad():
        assert (found(views[0]) - network(views[0])).abs().max() < 0.05 * network(views[0]).abs().max()
    assert isinstance(network[0], nn.Conv2d)  # the model itself stays
    with pytest.raises(RequestError, match="has no convolution or linear layer"):
        to_int8(nn.Sequential(nn.Flatten(), nn.Softmax(1)), views, "net")


def test_compare__counts_differences_and_equal_predictions():
    images, expected = torch.eye(4), torch.eye(4)
    same = compare("a", 10, lambda some: some, images, expected)
    assert (same.difference, same.equal) == (0, 1)
    other = compare("b", 10, lambda some: some.flip(1) * 3, images, expected)
    assert (other.difference, other.equal) == (3, 0)
