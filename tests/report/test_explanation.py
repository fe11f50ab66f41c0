"""`dfkd explain`: the figures, the table and the page, on networks whose answers are known."""

import csv
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from dfkd.app import demo
from dfkd.app.cli import main
from dfkd.config import ExplainConfig
from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.formats.kept_weights import kept_files
from dfkd.models import lenet5
from dfkd.models.classifier import Classifier
from dfkd.models.features.pixel_entropy import at_pixels, pixel_entropy, side_of
from dfkd.models.load import load_model
from dfkd.models.own import OwnNetwork
from dfkd.report import explanation, knowledge
from dfkd.report.answers import Answers, Explanation, facts
from dfkd.report.disagreements import heated
from dfkd.report.knowledge import GRID, Knowledge, Learning, shrunk
from dfkd.report.knowledge_page import gray
from dfkd.system.device import resolve_place
from dfkd.system.errors import RequestError
from dfkd.training.evaluate import open_pair

HOSTILE = "<script>alert(1)</script>"


def make_lenet(path, images, seed):
    """A LeNet whose classes are even on these images."""
    torch.manual_seed(seed)
    network = lenet5(num_classes=3, in_channels=1).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        last.bias -= logits.mean(dim=0)
        last.bias *= 50
        last.weight *= 50
    save_file(network.state_dict(), path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two LeNets that differ, and 40 images of 28 pixels, with labels and without."""
    folder = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(40) % 3)
    np.savez(folder / "plain.npz", images=images)
    (folder / "names.txt").write_text(f"zero\n{HOSTILE}\ntwo\n")
    for seed, name in enumerate(("a.safetensors", "b.safetensors")):
        make_lenet(folder / name, images, seed)
    return folder


def options(place, tmp_path, **more):
    spec = "lenet5:num_classes=3,in_channels=1@{}"
    given = {
        "model": spec.format(place / "a.safetensors"),
        "teacher": spec.format(place / "b.safetensors"),
        "data": str(place / "data.npz"),
        "normalize": "none",
        "image_size": 28,
        "out": str(tmp_path / "page.html"),
    }
    return ExplainConfig(**given | more)


def answered(place, name):
    """By hand, what a network says of the images."""
    network = lenet5(num_classes=3, in_channels=1)
    network.load_state_dict(load_file(place / name))
    with np.load(place / "data.npz") as data:
        pixels = torch.from_numpy(data["images"]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return network.eval()(pixels).double()


def test_explain__table_and_figures_are_those_of_the_answers(place, tmp_path, capsys):
    explanation.run(options(place, tmp_path))
    with (tmp_path / "page.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours, theirs = (answered(place, name).log_softmax(1) for name in ("a.safetensors", "b.safetensors"))
    assert [int(row["student"]) for row in rows] == ours.argmax(1).tolist()
    assert [int(row["teacher"]) for row in rows] == theirs.argmax(1).tolist()
    assert [int(row["label"]) for row in rows] == (np.arange(40) % 3).tolist()
    kl = (theirs.exp() * (theirs - ours)).sum(1)
    np.testing.assert_allclose([float(row["divergence"]) for row in rows], kl, atol=1e-4)
    sure = theirs.exp().amax(1)
    np.testing.assert_allclose([float(row["teacher_confidence"]) for row in rows], sure, atol=1e-4)
    differ = (ours.argmax(1) != theirs.argmax(1)).sum().item()
    assert 0 < differ < 40
    assert f"they disagree on {differ} images" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<li><figure>") == min(differ, 24)
    assert page.count("Grad-CAM of the student") == min(differ, 24)


def test_explain__the_largest_divergence_comes_first_and_count_limits(place, tmp_path):
    explanation.run(options(place, tmp_path, count=2))
    page = (tmp_path / "page.html").read_text()
    shown = [float(found) for found in re.findall(r"KL ([\d.]+)</div>", page)]
    with (tmp_path / "page.csv").open() as file:
        parted = [float(row["divergence"]) for row in csv.DictReader(file) if row["student"] != row["teacher"]]
    assert sorted(shown, reverse=True) == [round(kl, 2) for kl in sorted(parted, reverse=True)[:2]]


def test_explain__data_without_labels_and_names_that_are_only_text(place, tmp_path, capsys):
    explanation.run(options(place, tmp_path, data=str(place / "plain.npz"), classes=str(place / "names.txt")))
    page = (tmp_path / "page.html").read_text()
    assert "accuracy" not in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "note: accuracies are left out: " in capsys.readouterr().err


def test_explain__entropies_and_concepts(place, tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge, "pixel_entropy", partial(pixel_entropy, steps=2))
    masks = np.zeros((40, 28, 28), bool)
    masks[:, :14] = True
    np.save(tmp_path / "masks.npy", masks)
    explanation.run(options(place, tmp_path, entropy=3, foreground=str(tmp_path / "masks.npy")))
    page = (tmp_path / "page.html").read_text()
    assert page.count("pixel-wise entropy of the teacher") == 3
    assert "Visual concepts" in page


@pytest.mark.parametrize("teachers", [1, 2])
def test_explain__a_run_knows_its_teacher_and_data(tmp_path, digits_teacher, teachers, monkeypatch):
    images, labels = demo.digits()
    np.savez(tmp_path / "test.npz", images=images[1000:1060], labels=labels[1000:1060])
    np.savez(tmp_path / "pool.npz", images=images[:200])
    teacher = f"{demo.TEACHER}@{digits_teacher}"
    shared = [
        "--teacher",
        *[teacher] * teachers,
        "--normalize",
        demo.NORMALIZE,
        "--image-size",
        "16",
        "--device",
        "cpu",
    ]
    selection, run = str(tmp_path / "selection"), str(tmp_path / "run")
    pool = ["--pool", str(tmp_path / "pool.npz"), "--filter", "none", "--count", "100", "--out", selection]
    assert main(["select", *shared, *pool]) == 0
    learn = ["--samples", selection, "--steps", "4", "--batch-size", "8", "--keep-weights", "2", "--init", "none"]
    learn += ["--student", demo.STUDENT, "--test", str(tmp_path / "test.npz"), "--bits", "12"]
    assert main(["distill", *shared, *learn, "--out", run]) == 0
    bits: list[int | None] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            explanation, "open_pair", lambda config, *rest: bits.append(config.bits) or open_pair(config, *rest)
        )
        assert main(["explain", "--model", run, "--out", str(tmp_path / "page.html"), "--count", "3"]) == 0
    assert bits == [12]
    with (tmp_path / "page.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    right = np.mean([row["teacher"] == row["label"] for row in rows])
    assert right > 0.7
    assert main(["compare", run, "--out", str(tmp_path / "report.html"), "--disagreements", "2"]) == 0
    page = (tmp_path / "report.html").read_text().partition("Where student and teacher disagree")[2]
    agreement = np.mean([row["teacher"] == row["student"] for row in rows])
    assert f": agreement {agreement:.2%} of 60 images</summary>" in page
    assert page.count("Grad-CAM of the student") == 2 and "pairs of classes" in page and "Reliability" in page
    if teachers == 1:
        check_kept(tmp_path, Path(run), monkeypatch)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"foreground": "x.npy"}, "--foreground x.npy changes nothing without --entropy"),
        ({"baseline": "x"}, "--baseline x changes nothing without --entropy"),
        ({"foreground": "none.npy", "entropy": 2}, "file of masks (No such file or directory)"),
        ({"teacher": None}, "give --teacher: --model lenet5"),
        ({"data": None, "teacher": None}, "give --teacher and --data: --model"),
        ({"out": "page.txt"}, "--out page.txt is not a page"),
    ],
)
def test_explain__bad_requests_are_one_line(place, tmp_path, more, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        explanation.run(options(place, tmp_path, **more))


def check_kept(tmp_path, run, monkeypatch):
    """Of a run of four steps, the weights that it kept, and the page that counts concepts from them."""
    kept = kept_files(run)
    assert [*kept] == [0, 2, 4]
    first, last = load_file(kept[0]), load_file(kept[4])
    final = load_file(run / "student.safetensors")
    assert all(torch.equal(last[name], value) for name, value in final.items())
    assert not all(torch.equal(first[name], value) for name, value in final.items())
    assert {"weights/0000000.safetensors", "weights/0000004.safetensors"} <= {
        *json.loads((run / "result.json").read_text())["files"]
    }
    assert main(["inspect", str(run), "--verify"]) == 0
    monkeypatch.setattr(knowledge, "pixel_entropy", partial(pixel_entropy, steps=2))
    masks = np.zeros((60, 16, 16), bool)
    masks[:, :8] = True
    np.save(tmp_path / "masks.npy", masks)
    more = ["--entropy", "2", "--foreground", str(tmp_path / "masks.npy"), "--baseline", str(run), "--count", "0"]
    assert main(["explain", "--model", str(run), "--out", str(tmp_path / "known.html"), *more]) == 0
    page = (tmp_path / "known.html").read_text().partition("Learning, by the kept weights")[2]
    rows = re.findall(r'scope="row">(\w+)</th><td>2</td><td>([^<]+)</td><td>([^<]+)</td><td>([^<]+)</td>', page)
    assert [row[0] for row in rows] == ["student", "baseline"] and rows[0][1:] == rows[1][1:]
    kept[2].write_bytes(kept[0].read_bytes())
    assert main(["explain", "--model", str(run), "--out", str(tmp_path / "known.html"), *more]) == 2


def test_explain__masks_of_another_count_are_refused(place, tmp_path):
    np.save(tmp_path / "masks.npy", np.zeros((39, 28, 28)))
    with pytest.raises(RequestError, match=r"has shape \[39, 28, 28\]; give \[40, height, width\]"):
        explanation.run(options(place, tmp_path, entropy=2, foreground=str(tmp_path / "masks.npy")))


def test_explain__answers_that_are_not_finite_count_as_disagreement(place, tmp_path, capsys):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(784, 3)

        def forward(self, x):
            return self.linear(x.flatten(1)) / (x.mean(dim=(1, 2, 3)) > 0.5)[:, None]

    model = load_model(OwnNetwork(Broken()), Input("none", 28), channels=1)
    both = Classifier(model, resolve_place("cpu", "fp32"))
    data = open_pool([str(place / "data.npz")], image_size=28, channels=1)
    with np.load(place / "data.npz") as loaded:
        broken = loaded["images"].mean(axis=(1, 2, 3)) / 255 <= 0.5
    answers = explanation.answer_all(both, both, data, 16, None)
    assert 0 < broken.sum() < 40
    np.testing.assert_array_equal(answers.differ, broken)
    assert f"of {broken.sum()} images student or teacher gives no finite answer" in capsys.readouterr().err


def test_explain__leaves_unreadable_images_out_where_nothing_is_labeled(place, tmp_path, capsys, monkeypatch):
    examined = []
    monkeypatch.setattr(explanation, "knowledge", lambda networks, runs, pixels, masks: examined.append(pixels))
    folder = tmp_path / "photos"
    folder.mkdir()
    with np.load(place / "plain.npz") as loaded:
        for row, pixels in enumerate(loaded["images"]):
            Image.fromarray(pixels[..., 0]).save(folder / f"{row:02d}.png")
        second, last = loaded["images"][[1, 39]]
    for row in (0, 17):
        (folder / f"{row:02d}.png").write_bytes(b"no image")
    explanation.run(options(place, tmp_path, data=str(folder), entropy=2, batch_size=1))
    said = capsys.readouterr()
    assert "2 of 40 images cannot be read and are left out, such as photos/00.png (is not a PNG" in said.err
    assert f"data: {folder}, 38 images; 2 cannot be read" in said.out
    with (tmp_path / "page.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in range(40) if row not in (0, 17)]
    assert [int(row["row"]) for row in rows] == kept
    assert [row["image"] for row in rows] == [f"photos/{row:02d}.png" for row in kept]
    assert [int(row["student"]) for row in rows] == answered(place, "a.safetensors").argmax(1)[kept].tolist()
    np.testing.assert_array_equal(examined, [[second, last]])
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"none of 40 images can be read, such as photos/00\.png"):
        explanation.run(options(place, tmp_path, data=str(folder)))


def test_facts__who_is_right_where_they_part():
    answers = Answers(
        student=np.array([0, 1, 1, 2, 0]),
        teacher=np.array([0, 0, 1, 1, 2]),
        student_confidence=np.full(5, 0.5),
        teacher_confidence=np.full(5, 0.5),
        divergence=np.array([0.0, 3.0, 0.1, 1.0, 2.0]),
        labels=np.array([0, 0, 1, 2, 1]),
    )
    assert answers.disagreements().tolist() == [1, 4, 3]
    assert [answers.case(row) for row in answers.disagreements().tolist()] == ["lost", "both", "won"]
    empty = np.zeros((0, 4, 4, 1), np.uint8)
    found = dict(facts(Explanation("s", "t", "d", answers, (), (), empty, True, (None, None))))
    assert found["agreement"] == "40.00%; they disagree on 3 images"
    assert found["student's accuracy"].startswith("60.00%")
    assert found["the teacher is right, the student is not"] == "1 image"


def test_knowledge__means_over_images_and_shares():
    entropy = np.array([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [0.5, 1.5]]])
    masks = np.zeros((2, 2, 2), bool)
    masks[:, :, 0] = True
    known = Knowledge(np.zeros((2, 2, 2, 1), np.uint8), {"student": entropy}, masks)
    # the backgrounds' means are 1 and 1.25: two concepts on the foreground, then two again and one beside it
    assert known.counts()["student"] == pytest.approx((2.0, 0.5, (1 + 2 / 3) / 2))


def test_pictures__maps_and_masks():
    image = np.full((2, 2, 3), 100, np.uint8)
    heat = np.array([[0.0, 1.0], [0.0, 0.0]])
    shown = heated(image, heat)
    assert shown[0, 0].tolist() == [105, 105, 105]
    assert shown[0, 1].tolist() == [round(105 + 0.75 * (c - 105)) for c in (255, 120, 0)]
    assert gray(np.array([[2.0, 4.0], [3.0, 2.0]]))[..., 0].tolist() == [[0, 255], [128, 0]]
    mask = np.zeros((4, 4), bool)
    mask[:2, :3] = True
    assert shrunk(mask, (2, 2)).tolist() == [[True, True], [False, False]]
    assert shrunk(mask, (4, 4)).tolist() == mask.tolist()


@pytest.mark.parametrize(("side", "height", "parts"), [(40, 40, 14), (299, 150, 16), (224, 224, 16), (28, 20, 14)])
def test_shrunk__has_the_parts_of_the_entropies(side, height, parts):
    """Also where the parts do not divide an image: the last ones are cut off."""
    rows = -(-height // side_of((height, side), GRID))
    numbers = torch.arange(float(rows * parts)).view(1, rows, parts)
    owner = at_pixels(numbers, side_of((height, side), GRID), (height, side))[0].numpy()
    assert owner.shape == (height, side)
    for number in (0, rows * parts // 2 + parts // 3, rows * parts - 1):
        for finer in (1, 3):
            mask = (owner == number).repeat(finer, axis=0).repeat(finer, axis=1)
            assert np.flatnonzero(shrunk(mask, (height, side))).tolist() == [number]


def test_knowledge__without_any_background_has_no_concepts(monkeypatch, capsys):
    monkeypatch.setattr(knowledge, "deepest_map", lambda _: None)
    monkeypatch.setattr(knowledge, "entropies_of", lambda *_: np.zeros((2, 4, 4)))
    monkeypatch.setattr(knowledge, "learning_of", lambda *_: pytest.fail("there is nothing to compare with"))
    found = knowledge.knowledge(
        {}, {"student": Path("run")}, np.zeros((2, 4, 4, 1), np.uint8), np.ones((2, 4, 4), bool)
    )
    assert found is not None and found.masks is None
    assert "note: visual concepts are left out: the foreground covers" in capsys.readouterr().err


def test_learning__distances_and_detours_by_hand():
    # two images of four parts, a third without a concept
    concepts = np.zeros((3, 3, 2, 2), bool)
    concepts[0, 0, 0, 0] = True  # the first image has one concept, then three others, and keeps two of these
    concepts[1, 0] = [[False, True], [True, True]]
    concepts[2, 0] = [[False, True], [True, False]]
    concepts[:, 1, 1, 1] = True  # the second has its only one from the first moment on
    known = Learning((10, 20, 30), np.array([0.5, 0.9, 1.2]), concepts)
    assert known.counts.tolist() == pytest.approx([2 / 3, 4 / 3, 1])
    assert known.distances().tolist() == [0.9, 0.5]
    assert known.measures() == pytest.approx({"D mean": 0.7, "D std": 0.2, "rho": (2 / 4 + 1) / 2})
    nothing = Learning((10,), np.array([0.5]), concepts[:1, 2:]).measures()
    assert np.isnan([*nothing.values()]).all()
