"""CLIP as a classifier of names, with a tiny CLIP of random weights."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.config.stages.shared import Input
from dfkd.formats.shards import Shards
from dfkd.models.features.bn_statistics import BatchStatistics
from dfkd.models.features.find_taps import find_taps
from dfkd.models.load import load_trained
from dfkd.models.several import load_classifier
from dfkd.system.errors import RequestError

open_clip = pytest.importorskip("open_clip")
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "patch_size": None, "head_width": 8}
INPUT = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}


def made(folder, vision):
    """A folder as open_clip writes it."""
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}, "preprocess_cfg": INPUT}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = open_clip.CLIP(**config["model_cfg"])
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    logging.getLogger().addHandler(logging.NullHandler())  # open_clip adds one otherwise
    made(folder / "vit", VIT)
    made(folder / "resnet", RESNET)
    (folder / "names.txt").write_text("cat\nfire_truck\nship\n")
    return folder


@pytest.fixture
def text(clips, monkeypatch):
    monkeypatch.chdir(clips)
    return "clip:names=names.txt,model=vit"


def load(text, **more):
    return load_trained(text, **more)


def test_logits__are_the_scaled_cosines_of_an_image_and_the_mean_text(text):
    Path("prompts.txt").write_text("a photo of a {}.\na drawing of the {}\n")
    model = load(f"{text},templates=prompts.txt")
    network = open_clip.create_model("local-dir:vit").eval()
    ask = open_clip.get_tokenizer("local-dir:vit")
    images, expected = torch.rand(2, 3, 32, 32), []
    with torch.no_grad():
        embedded = network.encode_image(images)
        for name in ("cat", "fire truck", "ship"):
            said = network.encode_text(ask([f"a photo of a {name}.", f"a drawing of the {name}"]))
            mean = (said / said.norm(dim=1, keepdim=True)).mean(0)
            cosine = torch.nn.functional.cosine_similarity(embedded, mean[None])
            expected.append(network.logit_scale.exp() * cosine)
        answers = model.module(images)
    assert torch.allclose(answers, torch.stack(expected, dim=1), atol=1e-4)


def test_logits__in_bfloat16_are_compared_in_float32(text):
    network = load(text).module
    images = torch.rand(20, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedded, found = network.visual(images), network(images)
    assert embedded.dtype == torch.bfloat16 and found.dtype == torch.float32
    expected = torch.nn.functional.normalize(embedded.double(), dim=1) @ network.head.weight.detach().double().T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_model__says_its_input_its_names_and_that_it_has_weights(text, capsys):
    model = load(text)
    assert (model.image_size, model.classes, model.channels) == (32, 3, 3)
    assert model.preprocess.mean == (0.4, 0.5, 0.6) and model.preprocess.std == (0.2, 0.3, 0.4)
    assert model.class_names == ("cat", "fire_truck", "ship") and model.has_weights
    said = capsys.readouterr().err
    assert "3 classes of names.txt, 1 texts for each" in said and "fits no filter" in said
    other = load(f"{text},templates='a drawing of a {{}}'").fingerprint()
    assert other["weights"] != model.fingerprint()["weights"]
    tap = find_taps(model.module, torch.zeros(1, 3, 32, 32), wanted=("last",)).taps["last"]
    assert str(tap) == "head:input"


def test_model__keeps_no_statistics_of_batchnorm_and_takes_images_of_any_size(text):
    model = load(text.replace("vit", "resnet"))
    assert not BatchStatistics(model.module).layers
    small = load_trained(text, Input(image_size=16))
    images = torch.rand(2, 3, 16, 16)
    large = torch.nn.functional.interpolate(images, size=(32, 32), mode="bicubic", antialias=True)
    assert torch.allclose(small.module(images), load(text).module(large), atol=1e-5)


def test_select__a_folder_and_names_give_a_selection(text, tmp_path, rng):
    for number in range(6):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    out = tmp_path / "out"
    command = ["select", "--teacher", text, "--pool", str(tmp_path / "photos"), "--out", str(out), "--count", "4"]
    assert cli.main([*command, "--precision", "fp32"]) == 0
    manifest = Shards(out).manifest
    assert manifest.class_names == ("cat", "fire_truck", "ship")
    assert manifest.classes == 3 and manifest.content.options.method.startswith("threshold")
    # a second teacher beside it answers for the same names
    both = load_classifier("teachers.toml" if write_teachers() else "")
    assert both.class_names == ("cat", "fire_truck", "ship")


def write_teachers():
    """A file of two CLIPs."""
    tables = [f'[[teacher]]\nmodel = "clip:names=names.txt,model={name}"\n' for name in ("vit", "resnet")]
    return Path("teachers.toml").write_text("".join(tables))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip", "names"),
        ("clip:names=nowhere.txt,model=vit", "nowhere.txt cannot be read"),
        ("clip:names=names.txt,model=ViT-B-33", "open_clip has no model=ViT-B-33; did you mean 'ViT-B-32'"),
        ("clip:names=names.txt,weights=laion2b", "weights=laion2b is neither a file nor weights of ViT-B-32"),
        ("clip:names=names.txt,model=vit,templates=nowhere.txt", "templates=nowhere.txt cannot be read"),
        ("clip:names=names.txt,model=vit,templates='{} and {}'", "a line has one {}"),
        ("clip:names=names.txt,model=vit@clip.pt", "write weights=clip.pt among its options"),
    ],
)
def test_request__says_what_is_wrong(clips, monkeypatch, text, said):
    monkeypatch.chdir(clips)
    with pytest.raises(RequestError) as refused:
        load(text)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_package__that_is_missing_is_named(clips, monkeypatch):
    monkeypatch.chdir(clips)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(RequestError, match="needs open_clip: pip install"):
        load("clip:names=names.txt")
