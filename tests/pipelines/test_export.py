import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dfkd.config.stages.shared import Input
from dfkd.models.load import load_model


@pytest.fixture(scope="module")
def model(lab):
    return load_model(lab.teacher, Input("0.5/0.5", 16))


@pytest.fixture
def images(model):
    return torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))


FLAGS = ("--normalize", "0.5/0.5", "--image-size", 16)


@pytest.fixture
def export(lab, tmp_path):
    def run(form):
        out = tmp_path / f"student.{form}"  # the suffix says which format
        assert lab.dfkd("export", "--model", lab.teacher, *FLAGS, "--out", out) == 0
        return out

    return run


@pytest.fixture(scope="module")
def program(lab, tmp_path_factory):
    """The teacher as a `.pt2`."""
    out = tmp_path_factory.mktemp("program") / "student.pt2"
    assert lab.dfkd("export", "--model", lab.teacher, *FLAGS, "--out", out) == 0
    return out


def logits_of(onnx, batch):
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(onnx))
    return torch.from_numpy(evaluator.run(None, {evaluator.input_names[0]: batch.numpy()})[0])


def test_pt2_is_the_same_network_and_a_model(export, model, images, capsys):
    again = load_model(str(export("pt2")), Input("0.5/0.5", 16))
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), model.module(images), rtol=1e-4, atol=1e-4)
    assert "input [batch, 1, 16, 16]: pixels in [0, 1] less mean (0.5), over std (0.5)" in capsys.readouterr().err


def test_safetensors_are_weights_with_their_normalization(export, model):
    out = export("safetensors")
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    again = load_model(f"{metadata['architecture']}@{out}")
    assert again.fingerprint() == model.fingerprint()
    assert (json.loads(metadata["mean"]), json.loads(metadata["image_size"])) == ([0.5], 16)
    assert (again.normalize, again.image_size, again.takes_any_size) == ("0.5/0.5", 16, False)
    assert load_model(f"{metadata['architecture']}@{out}", Input(image_size=24)).image_size == 24
    save_file(load_file(out), out, metadata | {"image_size": "true"})
    assert load_model(f"{metadata['architecture']}@{out}").image_size == 32  # that of the architecture


@pytest.mark.slow  # that of a `.pt2` is as exact, and that of a network is of any batch (tests/photos/test_export.py)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter's own libraries
def test_onnx_gives_the_same_logits_for_any_batch(export, model, images):
    out = export("onnx")
    for batch in (images, images[:1]):
        with torch.no_grad():
            torch.testing.assert_close(logits_of(out, batch), model.module(batch), rtol=1e-3, atol=1e-3)


def test_what_was_exported_can_be_exported_again(lab, program, model, images, tmp_path):
    again = tmp_path / "again.pt2"
    assert lab.dfkd("export", "--model", program, *FLAGS, "--out", again) == 0
    with torch.no_grad():
        found = load_model(str(again), Input("0.5/0.5", 16)).module(images)
        torch.testing.assert_close(found, model.module(images), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_can_be_exported_as_onnx_for_any_batch(lab, program, model, images, tmp_path):
    again = tmp_path / "again.onnx"
    assert lab.dfkd("export", "--model", program, *FLAGS, "--out", again) == 0
    for batch in (images, images[:1]):
        with torch.no_grad():
            torch.testing.assert_close(logits_of(again, batch), model.module(batch), rtol=1e-3, atol=1e-3)


def test_bad_requests(lab, tmp_path, capsys):
    flags = ("--model", lab.teacher, "--out", tmp_path)
    assert lab.dfkd("export", *flags, "--format", "pt2") == 2
    assert "is a folder; give a file" in capsys.readouterr().err
    assert lab.dfkd("export", "--model", lab.teacher, "--out", tmp_path / "student.bin") == 2
    assert "does not end in .safetensors, .pt2, .onnx; name its --format" in capsys.readouterr().err
    assert lab.dfkd("export", *flags, "--format", "onx") == 2
    assert "invalid choice 'onx'" in capsys.readouterr().err
