import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import demo
from dfkd.config.stages.shared import Input
from dfkd.formats.shards import Shards
from dfkd.models import cifar_resnet, lenet5
from dfkd.models.classifier import Classifier
from dfkd.select import methods, stage
from dfkd.select.class_dropping import kept_classes
from dfkd.select.score import score_logits

COLUMNS = ["image", "source", "prediction", "confidence", "entropy", "logits", "kept_classes"]


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def raw_images(folder):
    return datasets.load_from_disk(str(folder)).cast_column("image", datasets.Image(decode=False))["image"]


@pytest.fixture
def no_teacher(monkeypatch):
    """Calling the teacher fails."""

    def refuse(self, pixels):
        raise AssertionError("the teacher was run")

    return lambda: monkeypatch.setattr(Classifier, "__call__", refuse)


def test_the_folder_holds_what_the_contract_says(lab, selection):
    assert sorted(tree(selection)) == [
        "data-00000.arrow",
        "dataset_info.json",
        "manifest.json",
        "scores.parquet",
        "state.json",
    ]
    manifest = json.loads((selection / "manifest.json").read_text())
    assert manifest["count"] == sum(manifest["per_class"]) == manifest["reasons"]["selected"] == 400
    assert manifest["admitted"] == 1200
    assert manifest["image"] == {"encoded": False, "size": 16, "channels": 1}
    assert manifest["content"]["options"]["method"] == "statistics:weight=0.0"
    assert str(lab.folder) not in (selection / "manifest.json").read_text()

    opened = datasets.load_from_disk(str(selection))
    assert opened.column_names == COLUMNS
    assert len(opened) == 400
    pool = np.load(lab.pool)["images"]
    for row in (0, 137, 399):
        image, index = opened[row]["image"], int(opened[row]["source"].removeprefix("pool.npz#"))
        assert np.array_equal(np.array(image, np.uint8).transpose(1, 2, 0), pool[index])

    scores = pq.read_table(selection / "scores.parquet").to_pydict()
    assert len(scores["source"]) == 1200
    chosen = [i for i, reason in enumerate(scores["reason"]) if reason == "selected"]
    assert [scores["source"][i] for i in chosen] == opened["source"][:]
    assert manifest["threshold"] is None


def test_the_threshold_is_in_the_manifest(lab, tmp_path):
    assert lab.select(tmp_path / "s", "--pool", lab.few, "--count", 40, "--method", "threshold") == 0
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["content"]["options"]["method"] == "threshold:gamma=0.7,draw=confidence"
    assert manifest["admitted"] == 84
    scores = pq.read_table(tmp_path / "s" / "scores.parquet").to_pydict()
    chosen = [i for i, reason in enumerate(scores["reason"]) if reason == "selected"]
    assert min(scores["confidence"][i] for i in chosen) >= manifest["threshold"]


@pytest.mark.parametrize("method", [*methods.__all__, "statistics:weight=0.5"])
def test_every_method_selects_in_bfloat16(lab, tmp_path, method):
    """`--precision auto` is bfloat16 on many processors and GPUs; `lab` names float32."""
    chosen = {}
    for precision in ("bf16", "fp32"):
        out = tmp_path / precision
        options = ("--pool", lab.few, "--method", method, "--count", 40, "--precision", precision)
        assert lab.select(out, *options) == 0
        table = pq.read_table(out / "scores.parquet")
        assert np.isfinite(table["confidence"].to_numpy()).all()
        chosen[precision] = set(np.flatnonzero(np.array(table["reason"].to_pylist()) == "selected"))
    assert len(chosen["bf16"]) == 40
    assert len(chosen["bf16"] & chosen["fp32"]) >= 30, "rounding moves few images"


def test_what_is_stored_is_what_the_teacher_says_of_the_stored_pixels(lab, selection):
    from dfkd.models.load import load_model
    from dfkd.system.device import resolve_place

    shards = Shards(selection)
    teacher = Classifier(load_model(lab.teacher, Input(demo.NORMALIZE)), resolve_place("cpu", "fp32"))
    logits = teacher(torch.from_numpy(shards.pixels(np.arange(len(shards))))).logits
    confidence, entropy, prediction = score_logits(logits)
    np.testing.assert_allclose(shards.column("logits"), logits, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(shards.column("confidence"), confidence, rtol=1e-4)
    np.testing.assert_allclose(shards.column("entropy"), entropy, rtol=1e-3, atol=1e-5)
    assert shards.column("prediction").tolist() == prediction.tolist()
    stored = torch.from_numpy(shards.column("logits"))
    assert shards.column("kept_classes").tolist() == kept_classes(stored, 0.05).tolist()


def test_method__is_by_default_what_the_teacher_allows(lab, tmp_path, monkeypatch):
    """Statistics for a teacher that remembers some; the threshold for another one, and where its option is given."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(dict(lenet5(num_classes=10, in_channels=1).state_dict()), "lenet.safetensors")
    flags = ("--normalize", "0.5/0.5", "--pool", lab.few, "--count", 20, "--filter", "none")
    for out, model, size, more, method in (
        ("a", lab.teacher, 16, (), "statistics"),
        ("b", lab.teacher, 16, ("--gamma", 0.5), "threshold:gamma=0.5"),
        ("c", "lenet5@lenet.safetensors", 32, (), "threshold:gamma=0.7"),
    ):
        assert lab.dfkd("select", "--teacher", model, "--image-size", size, *flags, *more, "--out", out) == 0
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        assert manifest["content"]["options"]["method"].startswith(method)
        assert manifest["config"]["method"] == method.partition(":")[0]
        assert (manifest["threshold"] is None) == (method == "statistics")


def test_statistics__takes_digits_from_a_heap_of_noise(lab, tmp_path, rng):
    """And the pool's scores say how far each image is."""
    digits = np.load(lab.heldout)["images"][:60]
    noise = rng.integers(0, 256, (240, *digits.shape[1:]), dtype=np.uint8)
    np.savez(tmp_path / "heap.npz", images=np.concatenate([noise, digits]))
    heap = ("--pool", tmp_path / "heap.npz", "--method", "statistics", "--balance", "none", "--count", 60)
    assert lab.select(tmp_path / "s", *heap) == 0
    table = pq.read_table(tmp_path / "s" / "scores.parquet").to_pydict()
    distance, selected = np.array(table["distance"]), np.array([reason == "selected" for reason in table["reason"]])
    assert selected[240:].mean() >= 0.9
    assert distance[selected].max() <= distance[~selected].min()


def test_the_teacher_is_folded_where_it_answers_for_many_images_and_not_where_it_is_measured(
    lab, tmp_path, monkeypatch
):
    asked, own = [], Classifier.__init__

    def made(self, model, place, taps=None, fold=False):
        asked.append(fold)
        own(self, model, place, taps, fold)

    monkeypatch.setattr(Classifier, "__init__", made)
    assert lab.select(tmp_path / "s", "--pool", lab.few, "--count", 40) == 0
    assert asked == [True]
    flags = ("--steps", 2, "--batch-size", 8, "--loss", "kd", "--test", lab.few_heldout)
    assert lab.distill(tmp_path / "s", tmp_path / "run", *flags) == 0
    assert asked == [True, True, False, False]  # the trainer's; student and teacher as they are measured


def test_the_same_request_gives_the_same_bytes_and_is_not_done_twice(lab, selection, tmp_path, capsys, no_teacher):
    assert lab.select(tmp_path / "again", "--count", 400) == 0
    assert tree(tmp_path / "again") == tree(selection)
    no_teacher()
    assert lab.select(tmp_path / "again", "--count", 400) == 0
    assert "complete already" in capsys.readouterr().err


def test_another_count_or_method_does_not_run_the_teacher(lab, tmp_path, capsys, no_teacher):
    few = ("--pool", lab.few)
    assert lab.select(tmp_path / "first", *few, "--method", "random", "--count", 50) == 0
    no_teacher()
    for number, more in enumerate(
        [
            ("--count", 20),
            ("--gamma", 0.3),
            ("--method", "confidence", "--count", 30),
            ("--method", "entropy"),
            ("--balance", "class", "--seed", 3),
            ("--class-dropping", 0.2),
        ]
    ):
        assert lab.select(tmp_path / str(number), *few, *more) == 0
        assert "all 120 are cached, the teacher is not run" in capsys.readouterr().err
    assert len(Shards(tmp_path / "1")) == 36  # all that gamma 0.3 admits
    assert len(Shards(tmp_path / "3")) == 60  # half of the pool
    confident, drawn = Shards(tmp_path / "2").column("confidence"), Shards(tmp_path / "3").column("confidence")
    assert confident.min() > np.median(drawn)


def test_a_killed_scoring_goes_on_from_its_last_part(lab, tmp_path, monkeypatch):
    from dfkd.select import stored_scores

    monkeypatch.setattr(stored_scores, "PART_ROWS", 50)
    forwards, few = [], ("--pool", lab.few, "--count", 40)
    whole = Classifier.__call__

    def killed(self, pixels):
        forwards.append(len(pixels))
        if sum(forwards) > 70:
            raise KeyboardInterrupt
        return whole(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "__call__", killed)
        assert lab.select(tmp_path / "out", *few) == 130
    assert not (tmp_path / "out").exists()
    forwards.clear()
    monkeypatch.setattr(
        Classifier, "__call__", lambda self, pixels: (forwards.append(len(pixels)), whole(self, pixels))[1]
    )
    assert lab.select(tmp_path / "out", *few) == 0
    assert sum(forwards) == 70  # of 120
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    assert lab.select(tmp_path / "whole", *few) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_near_duplicates_and_clusters(lab, tmp_path, capsys):
    images = np.load(lab.few)["images"]
    np.savez(tmp_path / "twice.npz", images=np.concatenate([images, images]))
    common = ("--teacher", lab.teacher, *lab.flags, "--pool", tmp_path / "twice.npz", "--method", "random")
    assert lab.dfkd("select", *common, "--out", tmp_path / "kept", "--deduplicate", 0.9999, "--count", 80) == 0
    rows = [int(s.partition("#")[2]) % 120 for s in Shards(tmp_path / "kept").column("source")]
    assert len(set(rows)) == 80
    assert json.loads((tmp_path / "kept" / "manifest.json").read_text())["reasons"]["near_duplicate"] >= 120
    of_pixels = ("--out", tmp_path / "pixels", "--deduplicate-pixels", 0.9999, "--count", 60)
    assert lab.dfkd("select", *common, *of_pixels) == 0
    rows = [int(s.partition("#")[2]) % 120 for s in Shards(tmp_path / "pixels").column("source")]
    assert len(set(rows)) == 60
    assert json.loads((tmp_path / "pixels" / "manifest.json").read_text())["content"]["options"]["deduplicate_pixels"]
    of_pixels = ("--out", tmp_path / "more", "--deduplicate-pixels", 0.9999, "--count", 150)
    assert lab.dfkd("select", *common, *of_pixels) == 0
    assert json.loads((tmp_path / "more" / "manifest.json").read_text())["reasons"]["near_duplicate"] == 240 - 150
    assert "note: 30 of the selected images are near-copies of others" in capsys.readouterr().err
    assert lab.dfkd("select", *common, "--out", tmp_path / "spread", "--balance", "cluster", "--count", 50) == 0
    assert len(Shards(tmp_path / "spread")) == 50


def test_unreadable_images_are_skipped_and_named(lab, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(np.load(lab.pool)["images"][:60]):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i:03d}.png")
    (folder / "017.png").write_bytes(b"not an image")
    common = ("--teacher", lab.teacher, *lab.flags, "--pool", folder, "--method", "random", "--count", 20)
    assert lab.dfkd("select", *common, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 60 images cannot be read, above --max-unreadable 0.01: photos/017.png" in said
    assert not (tmp_path / "out").exists()
    assert lab.dfkd("select", *common, "--out", tmp_path / "out", "--max-unreadable", 0.05) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["source"] for entry in manifest["unreadable"]] == ["photos/017.png"]
    assert manifest["reasons"]["unreadable"] == 1
    assert "photos/017.png" not in Shards(tmp_path / "out").column("source")
    capsys.readouterr()
    assert lab.dfkd("select", *common, "--out", tmp_path / "out") == 2  # the limit also holds for a complete selection
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_large_photos_stay_encoded_and_teach(lab, tmp_path, rng, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(24):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(15, axis=0).repeat(15, axis=1)
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    torch.save(cifar_resnet(depth=8, width=4, num_classes=3).state_dict(), tmp_path / "three.pt")
    teacher = ("--teacher", f"cifar_resnet:depth=8,width=4@{tmp_path / 'three.pt'}", "--precision", "fp32")
    monkeypatch.setattr("dfkd.select.selection_writer.BYTES_PER_SHARD", 20_000)
    where = ("--pool", folder, "--image-size", 66, "--out", tmp_path / "selection", "--method", "random", "--count", 20)
    assert lab.dfkd("select", *teacher, *where, "--seed", 1) == 0
    shards = Shards(tmp_path / "selection")
    assert shards.encoded
    sizes = [file.rows for file in shards.manifest.files]
    assert sum(sizes) == 20
    assert 1 < len(sizes) < 20
    by_name = {f"photos/{path.name}": path.read_bytes() for path in folder.iterdir()}
    stored = [bytes(image["bytes"]) for image in raw_images(tmp_path / "selection")]
    assert stored == [by_name[source] for source in shards.column("source")]
    assert shards.pixels(np.array([3, 0])).shape == (2, 66, 66, 3)
    image = datasets.load_from_disk(str(tmp_path / "selection"))[0]["image"]
    assert image.size == (120, 90)
    run = (
        "--student",
        "cifar_resnet:depth=8,width=2",
        "--samples",
        tmp_path / "selection",
        "--steps",
        3,
        "--batch-size",
        8,
    )
    assert lab.dfkd("distill", *teacher, *run, "--out", tmp_path / "run", "--loss", "kd") == 0


def test_a_teacher_of_ones_own_by_its_dotted_name(lab, tmp_path, monkeypatch):
    (tmp_path / "their_nets.py").write_text(
        "from torch import nn\n"
        "def make(hidden: int, classes: int = 4):\n"
        "    return nn.Sequential(nn.Conv2d(1, hidden, 3), nn.BatchNorm2d(hidden), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    import importlib
    import sys

    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    torch.save({"state_dict": importlib.import_module("their_nets").make(6).state_dict()}, "theirs.pth")
    teacher = ("--teacher", "their_nets.make:hidden=6@theirs.pth", "--normalize", "none", "--precision", "fp32")
    assert lab.dfkd("select", *teacher, "--pool", lab.few, "--out", "selection", "--count", 50) == 0
    run = (
        "--student",
        "their_nets.make:hidden=3",
        "--samples",
        "selection",
        "--out",
        "run",
        "--steps",
        4,
        "--batch-size",
        8,
    )
    assert lab.dfkd("distill", *teacher, *run) == 0
    assert (
        lab.dfkd("evaluate", "--model", "run", "--data", lab.heldout, "--json", "e.json") == 2
    )  # its digits have 10 classes


def test_labels_of_the_pool_are_never_read(lab, tmp_path):
    images = np.load(lab.pool)["images"][:100]
    np.savez(tmp_path / "labeled.npz", images=images, labels=np.array(["not", "numbers"]))
    common = ("--teacher", lab.teacher, *lab.flags, "--out", tmp_path / "out")
    assert lab.dfkd("select", *common, "--pool", tmp_path / "labeled.npz") == 0


def test_another_size_and_channel_count_are_converted_and_said_once(lab, tmp_path, rng, capsys):
    np.savez(tmp_path / "gray.npz", images=rng.integers(0, 256, (40, 24, 30), dtype=np.uint8))
    torch.save(cifar_resnet(depth=8, width=4).state_dict(), tmp_path / "w.pt")
    teacher = ("--teacher", f"cifar_resnet:depth=8,width=4@{tmp_path / 'w.pt'}", "--precision", "fp32")
    flags = ("--batch-size", 8, "--pool", tmp_path / "gray.npz", "--out", tmp_path / "out")
    assert lab.dfkd("select", *teacher, *flags) == 0
    assert Shards(tmp_path / "out").pixels(np.array([0])).shape == (1, 32, 32, 3)
    said = [line for line in capsys.readouterr().err.splitlines() if "gray.npz" in line and "32x32" in line]
    assert len(said) == 1
    assert "antialiased" in said[0]


def test_an_image_that_vanishes_after_scoring_is_no_black_image(lab, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(np.load(lab.pool)["images"][:20]):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i:03d}.png")
    whole = stage.choose

    def vanishing(*args, **kwargs):
        (folder / "011.png").unlink()
        return whole(*args, **kwargs)

    monkeypatch.setattr(stage, "choose", vanishing)
    common = ("--teacher", lab.teacher, *lab.flags, "--pool", folder, "--out", tmp_path / "out")
    assert lab.dfkd("select", *common, "--method", "random", "--count", 20) == 2
    assert "photos/011.png was scored and cannot be read any more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_are_kept_by_the_place_they_were_taken_at(lab, tmp_path):
    common = ("--pool", lab.few, "--method", "random", "--deduplicate", 0.97)
    assert lab.select(tmp_path / "a", *common, "--teacher-taps", "last=conv1") == 0
    assert lab.select(tmp_path / "b", *common) == 0
    a, b = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert a["content"]["options"]["features"] == "conv1"
    assert b["content"]["options"]["features"] == "linear:input"
    assert a["fingerprint"] != b["fingerprint"]
    assert a["reasons"] != b["reasons"]


def test_other_code_is_another_teacher(lab, tmp_path, monkeypatch):
    """The same weights in a network that computes something else: its scores are not those in the cache."""
    from dfkd.system.code import code_of
    from dfkd.system.names import find

    source = "from dfkd.models import cifar_resnet\ndef make():\n    return cifar_resnet(depth=8)\n"
    (tmp_path / "edited_nets.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    make = find("edited_nets.make", [], "model")
    before = code_of(make)
    (tmp_path / "edited_nets.py").write_text(source.replace("depth=8", "depth=8, width=8"))
    assert code_of(make) != before
    assert code_of(cifar_resnet) is None


@pytest.mark.parametrize("where", [".", "deep/er/out", "link", "out/"])
def test_odd_places_for_the_folder(lab, tmp_path, monkeypatch, where):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty" if where == "." else tmp_path)
    assert lab.select(where, "--pool", lab.few, "--count", 20, "--method", "random") == 0
    assert len(Shards((tmp_path / "empty" if where == "." else tmp_path) / where)) == 20
    assert not list(tmp_path.rglob("*.partial"))


def test_a_damaged_selection_is_not_complete(lab, tmp_path, capsys):
    out = tmp_path / "out"
    assert lab.select(out, "--pool", lab.few, "--count", 50) == 0
    shard = out / "data-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert lab.select(out, "--pool", lab.few, "--count", 50) == 2
    assert "delete the folder and select again" in capsys.readouterr().err


def test_what_changes_nothing_is_said(lab, tmp_path, capsys):
    few, tap = ("--pool", lab.few), ("--teacher-taps", "last=linear:input")
    assert lab.select(tmp_path / "s", *few, "--method", "random", "--gamma", 0.5, *tap) == 0
    said = capsys.readouterr().err
    assert "note: --gamma 0.5 changes nothing: --method random has none\n" in said
    assert "note: --teacher-taps changes nothing without --deduplicate or --balance cluster\n" in said
    assert lab.select(tmp_path / "t", *few, "--gamma", 0.5, *tap, "--deduplicate", 0.99) == 0
    assert "changes nothing" not in capsys.readouterr().err
    assert lab.select(tmp_path / "u", *few, "--gamma", 0.5, "--method", "threshold:gamma=0.9") == 0
    assert "note: --gamma 0.5 changes nothing: --method threshold:gamma=0.9 says it\n" in capsys.readouterr().err
