"""The package as it is used from Python: own modules, data sets and arrays, and what comes back."""

import contextlib
import copy
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

import dfkd
from dfkd.app import cli
from dfkd.generators.generator import GeneratorMethod
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model

SIDE = 16
EXPECTED = {"normalize": "0.5/0.5", "image_size": SIDE}
SHORT = {"steps": 2, "batch_size": 8, "loss": ["kd"], "precision": "fp32", "verbose": False}
PICK = {"count": 30, "filter": "none", "precision": "fp32", "verbose": False}


class Net(nn.Module):
    """Somebody's own network."""

    def __init__(self, width=4, classes=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)
        self.scale = 1.0

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3))) * self.scale


class Photos(Dataset):
    """Somebody's own data set: PIL images, and labels if they are asked for."""

    def __init__(self, images, labels=None):
        self.images, self.by_image = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        photo = Image.fromarray(self.images[index][..., 0])
        return photo if self.by_image is None else (photo, int(self.by_image[index]))


class Meta(Photos):
    """A data set whose images have no values."""

    def __init__(self):
        super().__init__(range(60))

    def __getitem__(self, index):
        return torch.zeros(3, SIDE, SIDE, dtype=torch.uint8, device="meta")


class WithoutLength(Meta):
    def __len__(self):
        raise TypeError("no length")


def net(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


@pytest.fixture
def pool(rng):
    return rng.integers(0, 256, (60, SIDE, SIDE, 1), dtype=np.uint8)


@pytest.fixture
def teacher():
    return dfkd.Teacher(net(), **EXPECTED)


@pytest.fixture
def selection(teacher, pool):
    return teacher.select(pool, **PICK)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def data_bytes(folder):
    """What a stage computed: shards and weights."""
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.suffix in (".arrow", ".safetensors")}


def test_import__is_quick_and_lists_its_names():
    code = "import sys, dfkd; assert 'Teacher' in dir(dfkd); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
    assert {*dfkd.__all__} <= {*dir(dfkd)}
    with pytest.raises(AttributeError, match="no attribute 'Teecher'"):
        _ = dfkd.Teecher


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64),
    ],
    ids=["no_grad", "inference_mode", "autocast", "device", "dtype"],
)
def test_result__does_not_depend_on_torchs_modes_around_the_call(teacher, pool, tmp_path, mode):
    options = {**SHORT, "loss": ["kd", "ofd"], "test": (pool, np.arange(60) % 3)}
    selection = teacher.select(pool, out=tmp_path / "s1", **PICK)
    plain = teacher.distill(net(1), selection, out=tmp_path / "r1", **options)
    student = net(1)
    with mode():
        before = modes()
        picked = teacher.select(pool, out=tmp_path / "s2", **PICK)
        run = teacher.distill(student, picked, out=tmp_path / "r2", **options)
        assert modes() == before
    assert data_bytes(picked.folder) == data_bytes(selection.folder)
    assert data_bytes(run.folder) == data_bytes(plain.folder)


def modes():
    kinds = torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.get_default_device()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *kinds


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_teacher__selects_distills_and_evaluates_with_own_objects(pool, tmp_path):
    network, student = net(), net(1, width=2)
    network.train()
    before, begins = state(network), state(student)
    teacher = dfkd.Teacher(network, **EXPECTED)
    selection = teacher.select(pool, out=tmp_path / "selection", **PICK)
    labels = np.arange(60) % 3
    run = teacher.distill(student, selection, test=(pool, labels), out=tmp_path / "run", **SHORT)
    assert same(before, state(network)) and network.training and next(network.parameters()).requires_grad
    assert same(begins, state(student)), "the caller's student is as it was"
    assert isinstance(run.student, Net) and not run.student.training
    assert not same(begins, state(run.student))
    assert run.result["steps"] == 2 and run.result["test_images"] == 60
    assert run.result["begins"] == "given"
    assert list(run.metrics["step"]) == [2] and {"loss", "kd"} <= {*run.metrics}
    figures = dfkd.Teacher(run, **EXPECTED).evaluate((pool, labels), verbose=False)
    assert figures["top1"] == run.result["top1"]
    measured = teacher.evaluate(Photos(pool, labels), teacher=run.student, verbose=False)
    assert measured["top1"] == run.result["teacher_top1"] and measured["agreement"] == run.result["agreement"]


def test_evaluate__shows_a_teacher_the_images_in_its_own_normalization(pool):
    torch.manual_seed(0)
    network, labels = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)), np.arange(60) % 3
    student, teacher = dfkd.Teacher(net(), **EXPECTED), dfkd.Teacher(network, normalize="0.9/0.2", image_size=SIDE)

    def right(one):
        return one.evaluate((pool, labels), verbose=False)["top1"]

    def right_beside(one):
        return student.evaluate((pool, labels), teacher=one, verbose=False)["teacher_top1"]

    assert right(teacher) != right(dfkd.Teacher(network, **EXPECTED))
    assert right_beside(teacher) == right(teacher)
    assert right_beside(network) == right(dfkd.Teacher(network, **EXPECTED)), "a network alone says none"


def test_selection__is_a_data_set_of_images_and_logits(selection, teacher, pool):
    assert len(selection) == 30 and selection.manifest["count"] == 30
    image, logits = selection[0]
    row = int(selection._shards.column("source")[0].removeprefix("array#"))
    assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0).numpy(), pool[row])
    network = net().eval()
    with torch.no_grad():
        expected = network((image[None].float() / 255 - 0.5) / 0.5)[0]
    torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(selection[-1][0], selection[29][0]) and len([*selection]) == 30
    with pytest.raises(IndexError):
        selection[30]
    for part in (slice(3), slice(-2, None), slice(9, 0, -4)):
        pairs = zip(selection[part], [*selection][part], strict=True)
        assert all(
            torch.equal(*images) and torch.equal(*logits)
            for images, logits in (zip(*pair, strict=True) for pair in pairs)
        )
    scores = selection.scores
    assert len(scores["confidence"]) == 60 and (scores["reason"] == "selected").sum() == 30


@pytest.mark.parametrize("workers", [0, 2])
def test_selection__is_loaded_by_torch(teacher, rng, workers):
    """Encoded images too, whose threads a fork would lose."""
    large = rng.integers(0, 256, (12, 72, 72, 3), dtype=np.uint8)
    torch.manual_seed(0)
    colors = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    selection = dfkd.Teacher(colors, normalize="none", image_size=72).select(
        large, count=10, method="random", verbose=False
    )
    assert selection.manifest["image"]["encoded"]
    whole = torch.stack([image for image, _ in selection])
    batches = [*DataLoader(selection, batch_size=4, num_workers=workers)]
    assert torch.equal(torch.cat([images for images, _ in batches]), whole)
    assert torch.cat([logits for _, logits in batches]).shape == (10, 3)


def test_pool__is_the_same_from_an_array_a_tensor_and_a_data_set(teacher, pool):
    pools = [pool, torch.from_numpy(pool), Photos(pool), Photos(pool, np.arange(60)), pool[..., 0]]
    made = [teacher.select(one, **PICK) for one in pools]
    images = [np.stack([image.numpy() for image, _ in selection]) for selection in made]
    assert all(np.array_equal(images[0], other) for other in images[1:])
    assert made[0].folder == made[1].folder and made[0].folder != made[2].folder, "sources are named otherwise"


def test_pool__of_a_data_set_is_found_again_by_its_content_or_what_it_says(teacher, pool):
    first = teacher.select(Photos(pool), **PICK).folder
    assert teacher.select(Photos(pool.copy()), **PICK).folder == first
    changed = pool.copy()
    changed[0] = 255 - changed[0]
    assert teacher.select(Photos(changed), **PICK).folder != first

    class Named(Photos):
        identity = "photos, 2"
        read = 0

        def __getitem__(self, index):
            Named.read += 1
            return super().__getitem__(index)

    named = teacher.select(Named(pool), **PICK).folder
    Named.read = 0
    assert teacher.select(Named(changed), **PICK).folder == named and Named.read < 10


def test_pool__of_a_data_set_is_known_by_all_that_decides_its_colors(teacher, pool):
    class Changed(Photos):
        def __init__(self, images, change):
            super().__init__(images)
            self.change = change

        def __getitem__(self, index):
            photo = super().__getitem__(index)
            self.change(photo)
            return photo

    def palette(values):
        return lambda photo: photo.putpalette(np.repeat(values, 3).astype(np.uint8).tobytes())

    def of(**said):
        return lambda photo: photo.info.update(said)

    def turned(photo):
        photo.getexif()[0x0112] = 3

    changes = [of(), palette(np.arange(256)), palette(np.arange(256)[::-1]), of(transparency=7), turned]
    folders = {teacher.select(Changed(pool, change), **PICK).folder for change in changes}
    assert len(folders) == len(changes)


@pytest.mark.parametrize("damaged", [0, 3])
@pytest.mark.parametrize("early", [True, False])
def test_pool__of_a_data_set_may_have_a_damaged_image(teacher, pool, damaged, early):
    class Files(Photos):
        def __getitem__(self, index):
            file = io.BytesIO()
            super().__getitem__(index).save(file, "BMP")
            photo = Image.open(io.BytesIO(file.getvalue()[: -40 if index == damaged else None]))
            if early:  # else Pillow reads the pixels later
                photo.load()
            return photo

    with pytest.raises(dfkd.RequestError, match="1 of 60 images cannot be read"):
        teacher.select(Files(pool), **PICK)
    assert len(teacher.select(Files(pool), max_unreadable=0.05, **PICK)) == PICK["count"]


def test_results__are_found_again_and_are_not_stale_after_the_weights_change(pool, monkeypatch):
    network = net()
    teacher = dfkd.Teacher(network, **EXPECTED)
    selection = teacher.select(pool, **PICK)
    run = teacher.distill(net(1), selection, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("dfkd.select.stage.score_pool", lambda *a, **k: pytest.fail("scored"))
        patch.setattr("dfkd.distill.trainer.Trainer.advance", lambda self: pytest.fail("trained"))
        assert dfkd.Teacher(net(), **EXPECTED).select(pool, **PICK).folder == selection.folder
        again = teacher.distill(net(1), selection, **SHORT)
        assert again.folder == run.folder and same(state(again.student), state(run.student))
    with torch.no_grad():
        network.head.weight.add_(0.5)
    assert teacher.select(pool, **PICK).folder != selection.folder
    assert teacher.distill(net(1), selection, **SHORT).folder != run.folder
    assert dfkd.Teacher(net(), **EXPECTED).distill(net(2), selection, **SHORT).folder != run.folder


def test_results__are_not_those_of_another_class_or_attribute_with_the_same_weights(teacher, pool, selection):
    class Other(Net):
        def forward(self, images):
            return -super().forward(images)

    torch.manual_seed(0)
    other, scaled = Other(), net()
    scaled.scale = 2.0
    assert same(state(other), state(net()))
    assert dfkd.Teacher(other, **EXPECTED).select(pool, **PICK).folder != selection.folder
    assert dfkd.Teacher(scaled, **EXPECTED).select(pool, **PICK).folder != selection.folder


NETWORK = """
from torch import nn
def act(x):
    return x.relu() if str(x) in {"a", "b", "c"} else x
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(2, 2), act
    def forward(self, x):
        return self.act(self.layer(x))
"""


@pytest.mark.slow
def test_identity__of_a_module_is_the_same_in_every_process():
    """And another one where a function that it calls is another."""
    code = (
        "import sys\nfrom dfkd.models.identity import code_identity\n"
        "for text in sys.argv[1:]:\n    exec(text)\n    print(code_identity(Net()))"
    )
    texts = (NETWORK, NETWORK.replace("relu", "tanh"), NETWORK)

    def printed(seed):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(dfkd.__file__).parents[1])}
        command = [sys.executable, "-c", code, *texts]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()

    first = printed("1")
    assert first == printed("2") and first[0] == first[2] != first[1]


def test_commands__and_calls_compute_the_same_bytes(pool, tmp_path):
    """The same request from both sides; also where the caller has drawn random numbers of his own."""
    torch.manual_seed(3)
    weights, data = tmp_path / "t.safetensors", tmp_path / "pool.npz"
    save_file(cifar_resnet(8, 4, 3, 1).state_dict(), weights)
    np.savez(data, images=pool)
    spelled = f"cifar_resnet:depth=8,width=4@{weights}"
    common = ["--teacher", spelled, "--normalize", "0.5/0.5", "--image-size", SIDE, "--precision", "fp32"]
    select = ["select", *common, "--pool", data, "--count", 30, "--out", tmp_path / "s1"]
    distill = ["distill", *common, "--student", "cifar_resnet:depth=8,width=2", "--samples", tmp_path / "s1"]
    distill += ["--steps", 3, "--batch-size", 8, "--out", tmp_path / "r1"]
    generate = ["generate", *common, "--method", "dafl:width=4", "--steps", 2, "--count", 8, "--batch-size", 8]
    for command in (select, distill, [*generate, "--out", tmp_path / "g1"]):
        assert cli.main([str(word) for word in command]) == 0
    teacher = dfkd.Teacher(spelled, **EXPECTED)
    quiet = {"precision": "fp32", "verbose": False}
    torch.rand(7)
    drawn = torch.random.get_rng_state()
    selection = teacher.select(str(data), count=30, out=tmp_path / "s2", **quiet)
    run = teacher.distill(
        "cifar_resnet:depth=8,width=2", selection, steps=3, batch_size=8, out=tmp_path / "r2", **quiet
    )
    made = teacher.generate("dafl:width=4", steps=2, count=8, batch_size=8, out=tmp_path / "g2", **quiet)
    assert torch.equal(torch.random.get_rng_state(), drawn), "the caller's random state is as it was"
    for one, other in (("s1", selection), ("r1", run), ("g1", made)):
        assert data_bytes(tmp_path / one) == data_bytes(other.folder) != {}
    first = json.loads((tmp_path / "s1" / "manifest.json").read_text())
    assert first["content"] == selection.manifest["content"]


@pytest.mark.parametrize("variable_first", [True, False])
def test_calls__do_not_see_each_others_names(teacher, pool, tmp_path, monkeypatch, variable_first):
    """One call names the pool by a variable, the other by its path: each stores what it was given."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "pool.npz", images=pool)
    monkeypatch.setenv("PHOTOS", str(tmp_path / "data"))
    given = {"variable": "$PHOTOS", "path": str(tmp_path / "data")}
    network, stored, named = "cifar_resnet:depth=8,width=2", {}, {}
    for name in ["variable", "path"] if variable_first else ["path", "variable"]:
        selection = teacher.select(f"{given[name]}/pool.npz", **PICK)
        run = teacher.distill(network, selection, out=tmp_path / name, name=f"{given[name]}/x", **SHORT)
        stored[name] = (run.folder / "config.toml").read_text()
        named[name] = teacher.select(given[name] + "/{pool,pool}.npz", **PICK).manifest["content"]["pool"]
    assert 'name = "$PHOTOS/x"' in stored["variable"] and "$PHOTOS" not in stored["path"]
    assert f'name = "{tmp_path / "data"}/x"' in stored["path"]
    assert named["variable"] == named["path"]


def test_run__keeps_the_names_in_its_students_architecture(teacher, selection, tmp_path, monkeypatch):
    """A run as a MODEL, also after other calls and in other orders: its identity does not depend on them."""
    (tmp_path / "spelled_nets.py").write_text(
        "from pathlib import Path\n\nfrom dfkd.models import cifar_resnet\n\n\n"
        "def make(file: str, num_classes: int = 3, in_channels: int = 1):\n"
        "    return cifar_resnet(8, int(Path(file).read_text()), num_classes, in_channels)\n"
    )
    (tmp_path / "width.txt").write_text("2")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path))
    run = teacher.distill("spelled_nets.make:file=$PLACE/width.txt", selection, **SHORT)
    config = (run.folder / "config.toml").read_text()
    assert "file=$PLACE/width.txt" in config and str(tmp_path / "width.txt") not in config
    assert "file=$PLACE/width.txt" in load_model(str(run.folder)).fingerprint()["architecture"]


def test_calls__in_two_threads_print_and_store_what_is_theirs(pool, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PHOTOS", str(tmp_path))
    failures = []

    def call(verbose, name):
        try:
            teacher = dfkd.Teacher(net(), **EXPECTED)
            teacher.select(pool, **{**PICK, "verbose": verbose}, out=tmp_path / name)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(name == "loud", name)) for name in ("loud", "silent")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = capfd.readouterr().err
    assert not failures and f"{tmp_path}/loud: 30 images" in said and "silent" not in said


def test_verbose_false__prints_nothing_at_all(teacher, pool, tmp_path, capfd):
    labels = np.arange(60) % 3
    selection = teacher.select(Photos(np.repeat(pool, 2, axis=1)), **PICK)  # resized, which a thread says
    runs = [teacher.distill(net(1), selection, test=(pool, labels), seed=s, name="n", **SHORT) for s in (0, 1)]
    teacher.generate("dafl:width=4", steps=2, count=8, batch_size=8, verbose=False)
    teacher.evaluate((pool, labels), verbose=False)
    dfkd.compare(runs, out=tmp_path / "report.html", verbose=False)
    _ = runs[0].student, runs[0].metrics, repr(runs[0]), repr(selection), selection.scores
    assert capfd.readouterr() == ("", "")
    teacher.select(pool, **{**PICK, "verbose": True})
    said = capfd.readouterr().err
    assert "select: " in said and str(selection.folder.parent) in said, "the folder of the cache is named"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t, p: t.select(p, gama=1), "select() has no parameter 'gama'; did you mean 'gamma'?"),
        (lambda t, p: t.select(p, gamma=2.0), "gamma 2.0 is not above 0 and at most 1"),
        (lambda t, p: t.select(p, count="many"), "select(): count='many' is not a whole number"),
        (lambda t, p: t.select(p, count=100), "count 100 is above the pool's 60 images"),
        (lambda t, p: t.select(p, normalize="none"), "select() takes no normalize: it is given to dfkd.Teacher"),
        (lambda t, p: t.select(p, method="gues"), "no selection method is called 'gues'"),
        (lambda t, p: t.select(p.astype(np.float32)), "pool is an array of float32, not uint8"),
        (lambda t, p: t.select(p[..., None]), "pool: the shape of one image"),
        (lambda t, p: t.select(3), "pool is a int, not a DATA text, an array"),
        (lambda t, p: t.select(p[0]), "pool is an array of shape [16, 16, 1], which may be one image"),
        (lambda t, p: t.select(list(p.repeat(3, axis=3))), "pool is an array of shape [16, 16, 3], which may be one"),
        (lambda t, p: t.select(p.repeat(3, axis=3)[0].transpose(2, 0, 1)), "pool is an array of shape [3, 16, 16]"),
        (lambda t, p: t.select(torch.from_numpy(p).to_sparse()), "pool is a tensor that cannot become an array"),
        (lambda t, p: t.select(Meta()), "image 0 of pool is a tensor that cannot become an array"),
        (lambda t, p: t.evaluate((p, torch.zeros(60, device="meta"))), "the second of the pair data is a tensor that"),
        (lambda t, p: t.select(Photos), "pool is a type, not a DATA text, an array"),
        (lambda t, p: t.select(WithoutLength()), "pool is a WithoutLength whose len() fails (TypeError: no length)"),
        (lambda t, p: t.distill(net().to("meta"), "s"), "student: weights of the module have no values"),
        (lambda t, p: dfkd.Teacher(nn.LazyLinear(3)), "teacher: weights of the module have no values"),
        (lambda t, p: t.select("nowhere/"), "there is no 'nowhere'"),
        (lambda t, p: t.select(p, part="1/2"), "part scores a part of the pool and returns no selection"),
        (lambda t, p: t.distill(net(), []), "samples names selections, source a generator"),
        (lambda t, p: t.distill(net(), p), "samples is a ndarray, not a selection or its folder"),
        (
            lambda t, p: t.evaluate((p, np.arange(60) % 3), teacher=3),
            "teacher is a int, not a MODEL text or a torch.nn.Module",
        ),
        (lambda t, p: t.generate("dafl", steps=0), "steps 0 is not at least 1"),
        (lambda t, p: t.evaluate(p), "data is an array without labels; give a pair (images, labels)"),
        (lambda t, p: t.evaluate((p, np.arange(60))), "the data has labels from 0 to 59"),
        (lambda t, p: dfkd.Teacher("resnt18"), "no model is called 'resnt18'"),
        (lambda t, p: dfkd.Teacher(net(), image_size=0), "image_size 0 is not at least 1"),
        (lambda t, p: dfkd.open_selection("nowhere"), "nowhere does not exist"),
        (lambda t, p: dfkd.open_run("nowhere"), "nowhere does not exist"),
        (lambda t, p: dfkd.compare([]), "compare() lacks runs"),
        (lambda t, p: dfkd.losses.KD(temperature=-1.0), "temperature=-1 is not above 0"),
    ],
)
def test_errors__are_value_errors_that_name_parameters(teacher, pool, call, said):
    with pytest.raises(ValueError) as raised:
        call(teacher, pool)
    assert isinstance(raised.value, dfkd.RequestError)
    assert said in str(raised.value) and "--" not in str(raised.value) and "\n" not in str(raised.value)


def test_errors__of_types_are_one_line():
    """In another process: the tests check types at every call."""
    code = (
        "import dfkd, torch\n"
        "wrong = {'image_size': '16', 'crop_pct': '1', 'interpolation': 'cubic', 'normalize': ('0', '1')}\n"
        "for name, value in wrong.items():\n"
        "    try: dfkd.Teacher(torch.nn.Flatten(), **{name: value})\n"
        "    except dfkd.RequestError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "dfkd.Teacher(): image_size='16' is not a whole number",
        "dfkd.Teacher(): crop_pct='1' is not a number",
        "dfkd.Teacher(): interpolation=cubic is not one of bilinear, bicubic",
        "dfkd.Teacher(): normalize=['0', '1'] is not text",
    ]


def test_errors__of_objects_in_place_of_text_are_one_line(tmp_path):
    """In another process: the tests check types at every call."""
    code = """
import functools, numpy as np, torch, dfkd
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
teacher = dfkd.Teacher(network, normalize="none", image_size=2)
pool = np.arange(480, dtype=np.uint8).reshape(40, 2, 2, 3)
quiet = {"count": 8, "filter": "none", "verbose": False}
for call in (
    lambda: teacher.select(pool, out=teacher, **quiet),
    lambda: teacher.select(pool, out=b"x", **quiet),
    lambda: teacher.select(pool, out="a\\0b", **quiet),
    lambda: teacher.select(pool, method=functools.partial(print), **quiet),
    lambda: teacher.distill(network, "s", loss=dfkd.losses.KD(), verbose=False),
    lambda: teacher.generate("dafl", fill=[], verbose=False),
    lambda: dfkd.open_selection(network),
    lambda: dfkd.open_run(None),
    lambda: dfkd.compare(None),
    lambda: dfkd.compare([3]),
    lambda: dfkd.Teacher([network, network], classes="ab"),
    lambda: dfkd.Teacher([network, network], classes=[1, 2]),
):
    try:
        print(call())
    except dfkd.RequestError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    path = "not a path as text or pathlib.Path"
    classes = "a list; give a file or a list of class names for each network"
    assert done.stdout.splitlines() == [
        f"out is a Teacher, {path}",
        f"out is a bytes, {path}",
        "out 'a\\x00b' is not a path",
        "method is a partial object, not text, a number, a function or a class",
        "loss is a KD object, not text, a number, a function or a class",
        "fill is a list, not a selection or its folder",
        f"folder is a Sequential, {path}",
        f"folder is a NoneType, {path}",
        f"runs is a NoneType, {path}",
        f"runs is a int, {path}",
        f"classes is not {classes}",
        f"classes is not {classes}",
    ]
    assert not [*tmp_path.iterdir()]


class Unlearning(Net):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)


@pytest.mark.parametrize("loss", [["kd"], ["kd", "ofd"], ["fitnet"]])
@pytest.mark.parametrize("student", [lambda: net(1, width=2).requires_grad_(False), lambda: Unlearning(2)])
def test_students__without_gradients_are_refused(teacher, selection, student, loss):
    """A loss with a projection of its own has a gradient, which would train only that."""
    with pytest.raises(dfkd.RequestError, match="no gradient leads from the student's outputs to its weights"):
        teacher.distill(student(), selection, **{**SHORT, "loss": loss})


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_students__of_torchscript_are_refused(teacher, selection):
    with pytest.raises(dfkd.RequestError, match="is TorchScript, which cannot learn"):
        teacher.distill(torch.jit.trace(net(1), torch.zeros(1, 1, SIDE, SIDE)), selection, **SHORT)


def test_paths__that_are_too_long_are_refused(teacher, pool):
    name = "x" * 300
    for call in (
        lambda: dfkd.open_selection(name),
        lambda: dfkd.open_run(name),
        lambda: dfkd.Teacher(f"lenet5@{name}.pt").evaluate(pool),
        lambda: teacher.select(name),
        lambda: teacher.select(pool, count=20, out=name),
        lambda: dfkd.compare([name], out=name),
    ):
        with pytest.raises(dfkd.RequestError, match=r"xxx.*: File name too long"):
            call()


def test_paths__may_begin_with_the_home_folder(teacher, pool, selection, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert teacher.select(pool, out="~/s", **PICK).folder == dfkd.open_selection("~/s").folder == tmp_path / "s"
    run = teacher.distill(net(1), selection, out="~/r", **SHORT)
    assert dfkd.open_run("~/r").folder == run.folder == tmp_path / "r"
    page = dfkd.compare("~/r", out="~/one.html", verbose=False)
    assert page == tmp_path / "one.html" == dfkd.compare(run, out=page, verbose=False)


def test_evaluate__takes_several_teachers(teacher, pool):
    several = [net(2), net(3)]
    data = pool, np.arange(60) % 3
    expected = teacher.evaluate(data, teacher=dfkd.Teacher(several, **EXPECTED), verbose=False)
    assert teacher.evaluate(data, teacher=several, verbose=False) == expected


def test_data_sets__that_cannot_be_used_are_refused(teacher, pool):
    class Floats(Photos):
        def __getitem__(self, index):
            return torch.from_numpy(self.images[index]).permute(2, 0, 1) / 255

    class Random(Photos):
        def __getitem__(self, index):
            return Image.fromarray(np.random.default_rng().integers(0, 256, (SIDE, SIDE), dtype=np.uint8))

    for data, said in ((Floats(pool), "is float32, not uint8"), (Random(pool), "another image 0 each time")):
        with pytest.raises(dfkd.RequestError, match=said):
            teacher.select(data, **PICK)


def test_run__of_an_object_is_opened_with_one(teacher, selection, tmp_path):
    run = teacher.distill(net(1), selection, out=tmp_path / "run", **SHORT)
    opened = dfkd.open_run(tmp_path / "run")
    assert opened.result == run.result
    with pytest.raises(dfkd.RequestError, match=r"was a Python object .*open_run\('.*run', student=module\)"):
        _ = opened.student
    given = net(7)
    before = state(given)
    again = dfkd.open_run(tmp_path / "run", student=given)
    assert same(state(again.student), state(run.student)) and same(state(given), before)
    with pytest.raises(dfkd.RequestError, match=r"was a .*Net; student is a .*Linear"):
        dfkd.open_run(tmp_path / "run", student=nn.Linear(2, 2))
    assert cli.main(["evaluate", "--model", str(tmp_path / "run"), "--data", "x"]) == 2


def test_run__of_a_text_is_a_model_for_teachers_and_students(teacher, selection):
    run = teacher.distill("cifar_resnet:depth=8,width=2", selection, **SHORT)
    assert isinstance(run.student, nn.Module) and not run.student.training
    again = teacher.distill(run, selection, **SHORT)
    assert again.result["begins"] == "given"
    assert len(dfkd.Teacher(run).select(np.zeros((4, SIDE, SIDE, 1), np.uint8) + 9, count=2, verbose=False)) == 2


def test_compare__takes_runs_and_folders(teacher, selection, tmp_path, capsys):
    runs = [teacher.distill(net(1), selection, seed=seed, name="mine", **SHORT) for seed in (0, 1)]
    page = dfkd.compare([runs[0], runs[1].folder], out=tmp_path / "report.html")
    assert page == tmp_path / "report.html" and page.read_text().startswith("<!doctype html>")
    assert "mine" in capsys.readouterr().out


def test_presets__give_way_to_keywords(teacher, selection, tmp_path):
    (tmp_path / "p.toml").write_text("[distill]\nsteps = 3\nbatch_size = 4\n")
    options = {k: v for k, v in SHORT.items() if k != "steps"}
    run = teacher.distill(net(1), selection, preset=tmp_path / "p.toml", **options)
    assert (run.result["steps"], run.result["images_seen"]) == (3, 24)


def test_options__that_are_none_have_their_default(teacher, pool):
    given = dict.fromkeys(("preset", "gamma", "part", "count"), None) | {k: v for k, v in PICK.items() if k != "count"}
    selection = teacher.select(pool, **given)
    run = teacher.distill(net(1), selection, name=None, preset=None, classes=None, lr=None, **SHORT)
    assert len(selection) == 30 and run.result["name"] == "statistics | kd"
    assert repr(dfkd.Teacher(net(), device=torch.device("cpu"), normalize=None)).endswith("Net: device=cpu>")


class Plain(GeneratorMethod):
    """Somebody's own generator."""

    def __init__(self, task, *, steps: int = 2):
        super().__init__(task, latent=4, width=4, lr=1e-3, steps=steps)

    def update(self, student):
        return self.learn({"mean": self.make(4).mean()}, {"mean": 1.0})


def test_generate__takes_a_class(teacher):
    made = teacher.generate(Plain, count=4, steps=2, batch_size=4, precision="fp32", verbose=False)
    assert len(made) == 4 and made.manifest["source"].endswith("test_python.Plain")


def test_keyboard_interrupt__leaves_a_run_that_goes_on(teacher, selection, monkeypatch):
    """Without a handler of signals: they are the caller's."""
    from dfkd.distill.trainer import Trainer

    options = {**SHORT, "steps": 6, "checkpoint_every": 2}
    whole = teacher.distill(net(1), selection, name="whole", **options)
    kept, advance = signal.getsignal(signal.SIGINT), Trainer.advance

    def interrupted(self):
        assert signal.getsignal(signal.SIGINT) is kept
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            teacher.distill(net(1), selection, out=whole.folder.with_name("other"), **options)
    steps = []
    monkeypatch.setattr(Trainer, "advance", lambda self: steps.append(self.step) or advance(self))
    run = teacher.distill(net(1), selection, out=whole.folder.with_name("other"), **options)
    assert steps == [4, 5] and data_bytes(run.folder) == data_bytes(whole.folder)


def test_methods__show_the_options_of_their_stage():
    parameters = inspect.signature(dfkd.Teacher.select).parameters
    assert parameters["max_unreadable"].default == 0.01 and parameters["gamma"].default is None
    assert not {"normalize", "teacher"} & parameters.keys() and "verbose" in parameters
    assert "gamma: " in dfkd.Teacher.select.__doc__ and "--" not in dfkd.Teacher.distill.__doc__
    assert "count" in inspect.signature(dfkd.Teacher.generate).parameters


def test_module__that_cannot_be_copied_is_refused(pool):
    class Graph(Net):
        def __init__(self):
            super().__init__()
            self.kept = self.head.weight * 2

    with pytest.raises(dfkd.RequestError, match="cannot be copied"):
        dfkd.Teacher(Graph(), **EXPECTED).select(pool, **PICK)


def test_copies__of_a_selection_are_opened_where_they_arrive(selection):
    import pickle

    other = pickle.loads(pickle.dumps(selection))
    assert torch.equal(other[3][0], selection[3][0]) and copy.deepcopy(selection).folder == selection.folder


def test_losses__are_used_alone_on_tensors():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    value = dfkd.losses.KD(temperature=2.0)(ours, theirs)
    expected = nn.functional.kl_div(
        (ours / 2).log_softmax(1), (theirs / 2).log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(value, 4 * expected)
    value.backward()
    assert ours.grad.abs().sum() > 0
    assert dfkd.losses.Relation()(ours, ours.detach()) == 0
    assert {"KD", "OFD", "Outputs"} <= {*dir(dfkd.losses)} and dfkd.losses.KD is dfkd.losses.KD


def test_losses__alone_say_what_they_need():
    logits = torch.randn(5, 4)
    with pytest.raises(dfkd.RequestError, match=r"Explicit reads the features first, last: give Outputs"):
        dfkd.losses.Explicit()(logits, logits)
    with pytest.raises(dfkd.RequestError, match="needs the networks themselves"):
        dfkd.losses.CRD()(logits, logits)
    outputs = dfkd.losses.Outputs
    narrow, wide = (outputs(logits, {n: torch.randn(5, w) for n in ("first", "last")}) for w in (3, 6))
    loss = dfkd.losses.Explicit()
    assert loss(narrow, wide) == loss(narrow, wide) > 0 and len([*loss.parameters()]) > 0
    with pytest.raises(AttributeError, match=r"dfkd\.losses"):
        _ = dfkd.losses.KDD


CELLS = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]), names)
print(names["run"].result["teacher_top1"], names["begun"].result["top1"], len(names["selection"]))
"""


@pytest.mark.slow
def test_quickstart__runs_and_its_outputs_are_clean(tmp_path):
    """Every cell of the notebook, in a process of its own as in a kernel, which would be another dependency."""
    path = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dfkd.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CELLS, path], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    teacher, student, selected = map(float, done.stdout.splitlines()[-1].split())
    assert teacher > 0.9 and student > 0.5 and selected == 1000
    assert (tmp_path / "report.html").exists()
