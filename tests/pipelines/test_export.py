import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dfkd.models.load import load_model


@pytest.fixture(scope="module")
def model(lab):
    return load_model(lab.teacher, normalize="0.5/0.5", image_size=16)


@pytest.fixture
def images(model):
    return torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def export(lab, tmp_path):
    def run(form, *more):
        out = tmp_path / f"student.{form}"
        flags = ("--normalize", "0.5/0.5", "--image-size", 16, "--out", out)  # the suffix says which format
        assert lab.dfkd("export", "--model", lab.teacher, *flags, *more) == 0
        return out

    return run


def test_pt2_is_the_same_network_and_a_model(export, model, images, capsys):
    again = load_model(str(export("pt2")), normalize="0.5/0.5", image_size=16)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter's own libraries
def test_onnx_gives_the_same_logits_for_any_batch(export, model, images):
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(export("onnx")))
    for batch in (images, images[:1]):
        (logits,) = evaluator.run(None, {"images": batch.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model.module(batch).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_what_was_exported_can_be_exported_again(lab, export, model, images, tmp_path, form):
    again = tmp_path / f"again.{form}"
    flags = ("--normalize", "0.5/0.5", "--image-size", 16, "--out", again)
    assert lab.dfkd("export", "--model", export("pt2"), *flags) == 0
    with torch.no_grad():
        expected = model.module(images)
        if form == "pt2":
            found = load_model(str(again), normalize="0.5/0.5", image_size=16).module(images)
        else:
            from onnx.reference import ReferenceEvaluator

            evaluator = ReferenceEvaluator(str(again))
            found = torch.from_numpy(evaluator.run(None, {evaluator.input_names[0]: images.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_bad_requests(lab, tmp_path, capsys):
    flags = ("--model", lab.teacher, "--out", tmp_path)
    assert lab.dfkd("export", *flags, "--format", "pt2") == 2
    assert "is a folder; give a file" in capsys.readouterr().err
    assert lab.dfkd("export", "--model", lab.teacher, "--out", tmp_path / "student.bin") == 2
    assert "does not end in .safetensors, .pt2, .onnx; name its --format" in capsys.readouterr().err
    assert lab.dfkd("export", *flags, "--format", "onx") == 2
    assert "invalid choice 'onx'" in capsys.readouterr().err
