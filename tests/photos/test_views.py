"""What of a photograph teacher and student see: the model's own resize and crop, and random windows of the files."""

import json
import tomllib

import numpy as np
import pytest
import torch

from dfkd.config.stages.shared import Input
from dfkd.data.images.frame import Crops, Frame
from dfkd.distill.trainer import Trainer
from dfkd.formats.shards import Shards
from dfkd.models.load import load_model
from dfkd.training.sampling import ShuffledOrder
from dfkd.training.stored import ShardSource

OWN = """
from dfkd.models import cifar_resnet

def configured(num_classes=5):
    network = cifar_resnet(8, width=4, num_classes=num_classes)
    network.pretrained_cfg = {
        "input_size": (3, 72, 72), "crop_pct": 0.8, "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
    }
    return network
"""


@pytest.fixture(scope="module")
def own(studio, tmp_path_factory):
    """A network that says of its input what timm's say; its MODEL text."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_photo_nets.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield f"own_photo_nets.configured@{studio.folder / 'teacher.pt'}"


def test_load_model__says_in_one_line_what_the_model_says_of_its_input(own, capsys):
    model = load_model(own)
    assert (model.frame, model.image_size) == (Frame(0.8, "bicubic"), 72)
    assert (
        "normalization 0.5/0.25, images are resized to 90 pixels (bicubic) and cropped to 72, as timm says; "
        "--normalize, --crop-pct and --interpolation override it"
    ) in capsys.readouterr().err
    assert load_model(own, Input(crop_pct=0.9)).frame == Frame(0.9, "bicubic")
    assert load_model(own, Input(crop_pct=1.0, interpolation="bilinear")).frame == Frame()
    assert load_model(own, Input(image_size=64)).frame == Frame()  # small images are what they were


def test_load_model__reads_the_transforms_of_torchvisions_weights(monkeypatch, capsys):
    from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

    state = mobilenet_v3_large().state_dict()
    monkeypatch.setattr(MobileNet_V3_Large_Weights, "get_state_dict", lambda *_, **__: state)
    model = load_model("mobilenet_v3_large:weights=IMAGENET1K_V2")
    assert (model.frame.resized(224), model.normalize, model.image_size) == (232, "imagenet", 224)
    said = "images are resized to 232 pixels (bilinear) and cropped to 224, as its weights say"
    assert said in capsys.readouterr().err


def test_stages__keep_what_the_teacher_says_of_photographs(studio, own, tmp_path, capsys):
    selection, run, figures = tmp_path / "selection", tmp_path / "run", tmp_path / "figures.json"
    pool = ("--pool", studio.photos, "--method", "random", "--count", 20, "--precision", "fp32")
    assert studio.dfkd("select", "--teacher", own, *pool, "--out", selection) == 0
    preprocess = json.loads((selection / "manifest.json").read_text())["content"]["preprocess"]
    assert (preprocess["crop_pct"], preprocess["interpolation"]) == (0.8, "bicubic")
    assert "are resized to 90 pixels (antialiased bicubic) and cropped to 72x72" in capsys.readouterr().err
    quick = ("--samples", selection, "--steps", 1, "--batch-size", 4, "--precision", "fp32", "--test", studio.photos)
    student = ("--student", "cifar_resnet:depth=8,width=2")
    assert studio.dfkd("distill", "--teacher", own, *student, *quick, "--out", run) == 0
    table = tomllib.loads((run / "config.toml").read_text())["model"]
    assert (table["crop_pct"], table["interpolation"], table["image_size"]) == (0.8, "bicubic", 72)
    assert load_model(str(run)).frame == Frame(0.8, "bicubic")
    assert studio.dfkd("evaluate", "--model", run, "--data", studio.photos, "--json", figures) == 0
    result = json.loads((run / "result.json").read_text())
    assert json.loads(figures.read_text())["top1"] == result["top1"]


def test_stages__take_the_ratio_of_an_option(studio, own, tmp_path):
    selection = tmp_path / "selection"
    pool = ("--pool", studio.photos, "--method", "random", "--count", 4, "--precision", "fp32")
    given = ("--crop-pct", 0.9, "--interpolation", "bilinear")
    assert studio.dfkd("select", "--teacher", own, *pool, *given, "--out", selection) == 0
    assert Shards(selection).manifest.content.preprocess.frame == Frame(0.9)


def test_source__gives_windows_of_files_that_follow_position_and_seed(selection):
    shards = [Shards(selection)]

    def batches(seed, *counts):
        source = ShardSource(shards, ShuffledOrder(20, 0), crops=Crops(0.3, seed))
        return np.concatenate([source.sample(count).pixels.numpy() for count in counts])

    windows = batches(0, 12)
    assert np.array_equal(windows, batches(0, 5, 7))
    assert not np.array_equal(windows, batches(1, 12))
    source = ShardSource(shards, ShuffledOrder(20, 0), crops=Crops(0.3, 0))
    source.load_state_dict({**source.state_dict(), "position": 5})
    assert np.array_equal(windows[5:], source.sample(7).pixels.numpy())


def views_of(studio, selection, out, monkeypatch, *more):
    """The pixels of the batches that a short run learns from, as they leave the source."""
    seen = []

    def augment(trainer, batch, real=Trainer.augment):
        seen.append(batch.pixels)
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "augment", augment)
    assert studio.distill(selection, out, *more) == 0
    options = tomllib.loads((out / "config.toml").read_text())["content"]["options"]
    return torch.cat(seen), options


def test_distill__crops_photographs_from_their_files_by_default(studio, selection, tmp_path, monkeypatch):
    pixels, options = views_of(studio, selection, tmp_path / "run", monkeypatch, "--init", "none")
    assert (options["crop_area"], options["crop_padding"]) == (0.35, 0)
    order = ShuffledOrder(20, 0).rows(0, 8)
    assert not np.array_equal(pixels.numpy(), Shards(selection).pixels(order))
    assert np.array_equal(pixels.numpy(), Shards(selection).pixels(order, Crops(0.35, 0).at(0, 8)))


@pytest.mark.parametrize(
    ("options", "padding"), [(("--crop-area", 1), 9), (("--crop-padding", 4), 4), (("--teacher-views", 1), 9)]
)
def test_distill__shifts_whole_photographs_where_an_option_says_so(studio, selection, tmp_path, options, padding):
    assert studio.distill(selection, tmp_path / "run", *options) == 0
    found = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["content"]["options"]
    assert ("crop_area" not in found, found["crop_padding"]) == (True, padding)


def test_distill__jitters_colors_the_same_for_teacher_and_student(studio, selection, tmp_path, monkeypatch):
    views = []

    def teach(trainer, view, batch, real=Trainer.teach):
        views.append(view)
        return real(trainer, view, batch)

    monkeypatch.setattr(Trainer, "teach", teach)
    for strength in ("0.5", None):
        given = ("--color-jitter", strength) if strength else ()
        assert studio.distill(selection, tmp_path / f"run{strength}", "--steps", 1, *given) == 0
    assert views[0].shape == views[1].shape
    assert not torch.equal(views[0], views[1])
