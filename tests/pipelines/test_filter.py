"""`dfkd select --filter`: the pool is made like what the teacher learnt from, before anybody sees it."""

import importlib
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import demo
from dfkd.config.stages.shared import Input
from dfkd.data.images.filter import read_filter
from dfkd.formats.shards import Shards
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.select import filters
from dfkd.system.device import resolve_place

TWO_STEPS = ("--steps", 2, "--batch-size", 8, "--init", "none")


@pytest.fixture(autouse=True)
def _of_few(monkeypatch):
    """A filter is fitted for a pool of 200 images, too."""
    monkeypatch.setattr("dfkd.select.pool_filter.LEAST", 200)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def select(lab, out, pool, *more):
    """As `lab.select`, with nothing said of the filter."""
    return lab.dfkd("select", "--teacher", lab.teacher, *lab.flags, "--pool", pool, "--out", out, *more)


@pytest.fixture(scope="module")
def pale(tmp_path_factory):
    """Digits that nobody would take for such: paler by far than the teacher's own."""
    images, _ = demo.digits()
    path = tmp_path_factory.mktemp("pale") / "pale.npz"
    np.savez(path, images=(110 + 0.4 * images[1000:1260]).astype(np.uint8))
    return path


@pytest.fixture
def no_fit():
    def refuse(self, images, size):
        raise AssertionError("a filter was fitted")

    return lambda patch: patch.setattr(filters._Centered, "__init__", refuse)


def test_a_filter_is_fitted_and_what_is_stored_has_gone_through_it(lab, pale, tmp_path, capsys):
    assert select(lab, tmp_path / "s", pale, "--count", 120) == 0
    found = manifest(tmp_path / "s")
    before, after = found["filter"]["inception_score"]
    assert after > 3 * before
    assert f"Inception Score of the pool is {before:.2f}, and {after:.2f} filtered\n" in capsys.readouterr().err
    assert found["content"]["options"]["filter"] == "fitted:size=5"

    shards = Shards(tmp_path / "s")
    picked = [int(source.removeprefix("pale.npz#")) for source in shards.column("source")]
    pixels = shards.pixels(np.arange(120))
    assert np.array_equal(pixels, read_filter(found["filter"], 1)(np.load(pale)["images"][picked]))
    teacher = Classifier(load_model(lab.teacher, Input(demo.NORMALIZE)), resolve_place("cpu", "fp32"))
    np.testing.assert_allclose(shards.column("logits"), teacher(torch.from_numpy(pixels)).logits, rtol=2e-3, atol=1e-2)

    assert lab.dfkd("inspect", tmp_path / "s", "--out", tmp_path / "s.html") == 0
    fact = f"the teacher's Inception Score of the pool: {before:.2f}, {after:.2f} with it"
    assert fact.replace("'", "&#x27;") in (tmp_path / "s.html").read_text()
    assert fact in capsys.readouterr().out


def test_a_filter_is_fitted_once_for_a_teacher_and_a_pool(lab, pale, tmp_path, no_fit, monkeypatch, capsys):
    """For statistics, whatever the count, and for all other methods."""
    for given, other in ((), ()), (("--method", "threshold"), ("--method", "random")):
        assert select(lab, tmp_path / f"a{len(given)}", pale, "--count", 120, *given) == 0
        with monkeypatch.context() as patch:
            no_fit(patch)
            assert select(lab, tmp_path / f"b{len(given)}", pale, "--count", 80, *other) == 0
        assert manifest(tmp_path / f"a{len(given)}")["filter"] == manifest(tmp_path / f"b{len(given)}")["filter"]
        assert "scores: all 260 are cached" in capsys.readouterr().err
    assert select(lab, tmp_path / "a0", pale, "--count", 120) == 0
    assert "this selection is complete already" in capsys.readouterr().err


def test_a_damaged_filter_in_the_cache_is_fitted_again(lab, pale, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    assert select(lab, tmp_path / "a", pale, "--count", 120) == 0
    (kept,) = (tmp_path / "cache").rglob("filter.json")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert select(lab, tmp_path / "b", pale, "--count", 120) == 0
    assert kept.read_bytes() == whole
    assert manifest(tmp_path / "a")["fingerprint"] == manifest(tmp_path / "b")["fingerprint"]


def test_filter__of_a_heap_is_that_of_the_images_that_are_selected(lab, tmp_path, monkeypatch):
    """Where most of a pool is noise, that would decide the filter of a selection that has none of it."""
    # any filter is kept: the one for noise is hardly better than none, so that rounding would decide
    monkeypatch.setattr(filters.Traits, "of", lambda target: filters.Traits(rise=None))
    digits = demo.digits()[0][1000:1100]
    noise = np.random.default_rng(0).integers(0, 256, (400, *digits.shape[1:]), dtype=np.uint8)
    np.savez(tmp_path / "heap.npz", images=np.concatenate([digits, noise]))
    changes = {}
    for method in ("statistics", "threshold"):
        more = ("--count", 80, "--method", method)
        assert select(lab, tmp_path / method, tmp_path / "heap.npz", *more) == 0
        found = read_filter(manifest(tmp_path / method)["filter"], 1)
        changes[method] = np.abs(found(digits).astype(float) - digits).mean()
    assert changes["statistics"] < 0.7 * changes["threshold"], changes


def test_a_pool_without_its_filter_is_another_selection(lab, pale, tmp_path, capsys):
    assert select(lab, tmp_path / "s", pale, "--count", 120) == 0
    assert select(lab, tmp_path / "s", pale, "--count", 120, "--filter", "none") == 2
    assert "holds another selection: options.filter" in capsys.readouterr().err
    assert select(lab, tmp_path / "t", pale, "--count", 120, "--filter", "none") == 0
    assert "filter" not in manifest(tmp_path / "t")
    assert "filter" not in manifest(tmp_path / "t")["content"]["options"]


def test_a_filter_that_does_not_help_is_not_kept(lab, tmp_path, capsys):
    images, _ = demo.digits()
    np.savez(tmp_path / "own.npz", images=images[:260])
    assert select(lab, tmp_path / "s", tmp_path / "own.npz", "--count", 120) == 0
    found = manifest(tmp_path / "s")["filter"]
    assert found.keys() == {"inception_score"}
    assert "filtered; not kept" in capsys.readouterr().err
    shards = Shards(tmp_path / "s")
    picked = [int(source.removeprefix("own.npz#")) for source in shards.column("source")]
    assert np.array_equal(shards.pixels(np.arange(120)), images[picked])


def test_files_stay_as_they_came_and_are_filtered_when_they_are_read(lab, tmp_path, monkeypatch, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    monkeypatch.setattr("dfkd.select.pool_filter.LEAST", 40)
    for i, patch in enumerate(demo.patches(42)):
        Image.fromarray(patch[..., 0]).resize((72, 72)).save(photos / f"{i:03d}.png")
    flags = ("--teacher", lab.teacher, "--normalize", demo.NORMALIZE, "--image-size", 66, "--precision", "fp32")
    pool = ("--pool", photos, "--count", 20)
    assert lab.dfkd("select", *flags, *pool, "--filter", "blur:sigma=2", "--out", tmp_path / "s") == 0
    assert lab.dfkd("select", *flags, *pool, "--method", "random", "--out", tmp_path / "plain") == 0
    shards = Shards(tmp_path / "s")
    assert shards.encoded
    plain = manifest(tmp_path / "plain")
    assert "filter" not in plain  # unasked only up to 64 pixels
    names = shards.column("source").tolist()
    from dfkd.data import open_pool

    pool = open_pool([str(photos)], image_size=66, channels=1)
    rows = [i for i, origin in enumerate(pool.origins(np.arange(42))) if origin in names]
    own = pool.images(np.array(rows)).pixels
    stored = shards.pixels(np.arange(20))
    assert np.array_equal(stored, read_filter(manifest(tmp_path / "s")["filter"], 1)(own))
    assert np.abs(np.diff(stored.astype(int), axis=1)).mean() < 0.9 * np.abs(np.diff(own.astype(int), axis=1)).mean()
    opened = datasets.load_from_disk(str(tmp_path / "s")).cast_column("image", datasets.Image(decode=False))
    assert [image["bytes"] for image in opened["image"]] == pool.files(np.array(rows))
    assert lab.distill(tmp_path / "s", tmp_path / "run", *TWO_STEPS) == 0

    capsys.readouterr()
    assert lab.dfkd("select", *flags, "--pool", tmp_path / "s", "--count", 5, "--out", tmp_path / "again") == 0
    assert "read as they came, without the filter that it was made with" in capsys.readouterr().err


OWN = """
import torch
from dfkd.data.images.filter import Filter

def negative(teacher, pixels, *, white: float = 1.0):
    return Filter(-torch.eye(pixels.shape[3])[:, :, None, None], torch.full((pixels.shape[3],), white))

def nothing(teacher, pixels):
    return None

def even(teacher, pixels):
    return Filter(torch.zeros(1, 1, 4, 4), torch.zeros(1))

def of_three(teacher, pixels):
    return Filter(torch.zeros(3, 3, 1, 1), torch.zeros(3))

def not_a_number(teacher, pixels):
    return Filter(torch.full((1, 1, 1, 1), float("nan")), torch.zeros(1))

def precise(teacher, pixels):
    return Filter(torch.full((1, 1, 1, 1), 0.5).requires_grad_(), torch.zeros(1))
"""


def test_a_filter_of_your_own(lab, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_filters.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    few = ("--pool", lab.few, "--count", 100)
    assert lab.select(tmp_path / "s", *few, "--filter", "own_filters.negative:white=0.5") == 0
    options = manifest(tmp_path / "s")["content"]["options"]
    assert options["filter"] == "own_filters.negative:white=0.5"
    assert len(options["filter_code"]) == 16
    shards = Shards(tmp_path / "s")
    picked = [int(source.removeprefix("few.npz#")) for source in shards.column("source")]
    expected = (127.5 - np.load(lab.few)["images"][picked].astype(float)).clip(0)
    assert np.abs(shards.pixels(np.arange(100)) - expected).max() <= 0.5
    assert lab.select(tmp_path / "p", *few, "--filter", "own_filters.precise") == 0
    for name, why in {
        "nothing": "gives a NoneType, not a dfkd.data.images.filter.Filter",
        "even": "cannot be used: filter has a kernel of [1, 1, 4, 4] and a bias of [1]",
        "of_three": "cannot be used: filter has a kernel of [3, 3, 1, 1] and a bias of [3]",
        "not_a_number": "cannot be used: filter has numbers that are not finite",
    }.items():
        assert lab.select(tmp_path / "t", *few, "--filter", f"own_filters.{name}") == 2
        assert f"filter own_filters.{name} {why}" in capsys.readouterr().err
        assert not list(tmp_path.glob("t*"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("blurr", "no filter is called 'blurr'; did you mean 'blur'?"),
        ("blur", "filter 'blur' needs sigma: blur:sigma=..."),
        ("blur:0.5", "filter 'blur:0.5': 0.5 is for no parameter; write blur:key=0.5 with one of sigma"),
        ("blur:sigma=0", "filter blur: sigma=0.0 is not from 0.1 to 3, or from -3 to -0.1"),
        ("fitted:size=4", "filter fitted: size=4 is not odd and from 1 to 15"),
        ("fitted:size=17", "filter fitted: size=17 is not odd and from 1 to 15"),
        ("fitted:width=3", "filter 'fitted' has no parameter 'width'"),
        ("none:1", "--filter none:1: none has no parameters"),
        ("Auto:size=3", "--filter Auto:size=3: Auto has no parameters"),
        (
            "own",
            "there are blur, fitted (your own is named with dots: my_package.own); or none",
        ),
    ],
)
def test_a_wrong_filter_is_refused_before_the_pool_is_scored(lab, tmp_path, capsys, text, why):
    assert lab.select(tmp_path / "s", "--count", 10, "--filter", text) == 2
    told = capsys.readouterr().err
    assert why in told
    assert "scoring" not in told
    assert not list(tmp_path.iterdir())


def test_a_teacher_without_batchnorm_is_taken_as_it_is_unless_a_fit_is_asked_for(lab, tmp_path, capsys):
    save_file(load_model("lenet5:in_channels=1").module.state_dict(), tmp_path / "lenet.safetensors")
    teacher = f"lenet5:in_channels=1@{tmp_path / 'lenet.safetensors'}"
    flags = ("--teacher", teacher, "--image-size", 32, "--pool", lab.pool, "--count", 10)
    assert lab.dfkd("select", *flags, "--out", tmp_path / "s") == 0
    assert "filter" not in manifest(tmp_path / "s")
    assert lab.dfkd("select", *flags, "--out", tmp_path / "t", "--filter", "fitted") == 2
    assert "filter fitted: it reads the statistics" in capsys.readouterr().err


def test_a_small_pool_is_named_as_the_reason_only_where_a_filter_could_be_fitted(
    lab, pale, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("dfkd.select.pool_filter.LEAST", 10**6)
    why = "1000000 are needed to fit one"
    assert select(lab, tmp_path / "s", pale) == 0
    assert why in capsys.readouterr().err
    save_file(load_model("lenet5:in_channels=1").module.state_dict(), tmp_path / "lenet.safetensors")
    flags = ("--teacher", f"lenet5:in_channels=1@{tmp_path / 'lenet.safetensors'}", "--image-size", 32)
    assert lab.dfkd("select", *flags, "--pool", lab.pool, "--count", 10, "--out", tmp_path / "t") == 0
    assert why not in capsys.readouterr().err


@pytest.mark.parametrize("spelled", ["Fitted", "dfkd.select.filters.fitted"])
def test_a_fitted_filter_is_judged_by_whatever_name(lab, tmp_path, spelled):
    images, _ = demo.digits()
    np.savez(tmp_path / "own.npz", images=images[:260])
    assert select(lab, tmp_path / "s", tmp_path / "own.npz", "--filter", spelled) == 0
    assert manifest(tmp_path / "s")["filter"].keys() == {"inception_score"}


@pytest.mark.parametrize("spelled", ["None", "NONE"])
def test_none_is_none_however_it_is_written(lab, pale, tmp_path, spelled):
    assert select(lab, tmp_path / "s", pale, "--filter", spelled) == 0
    assert "filter" not in manifest(tmp_path / "s")


TEACHERS = """
import torch
from torch import nn
from dfkd.models import cifar_resnet

class WithoutGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = cifar_resnet(depth=8, width=16, num_classes=10, in_channels=1)

    @torch.no_grad()
    def forward(self, x):
        return self.net(x)

class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Conv2d(1, 10, 16), nn.BatchNorm2d(1)

    def forward(self, x):
        return self.head(x).flatten(1)
"""


@pytest.mark.parametrize("name", ["WithoutGradient", "Unused"])
def test_a_teacher_whose_statistics_lead_nowhere_is_taken_as_it_is(lab, pale, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "own_teachers.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("own_teachers")
    save_file(getattr(module, name)().state_dict(), tmp_path / "t.safetensors")
    flags = ("--teacher", f"own_teachers.{name}@{tmp_path / 't.safetensors'}", *lab.flags, "--pool", pale)
    assert lab.dfkd("select", *flags, "--count", 10, "--out", tmp_path / "s") == 0
    why = "no gradient leads from the teacher's BatchNorm layers to its input"
    assert f"the images are not filtered: filter fitted: {why}" in capsys.readouterr().err
    assert "filter" not in manifest(tmp_path / "s")
    assert lab.dfkd("select", *flags, "--count", 10, "--out", tmp_path / "t", "--filter", "fitted") == 2
    assert why in capsys.readouterr().err


def test_a_pool_that_cannot_be_read_is_told_as_such(lab, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    for i in range(220):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"no image")
    assert select(lab, tmp_path / "s", tmp_path / "bad") == 2
    assert "220 of 220 images cannot be read, above --max-unreadable" in capsys.readouterr().err


def test_a_teacher_that_answers_nothing_finite_is_told_as_such(lab, pale, tmp_path, capsys):
    state = load_model(lab.teacher, Input(demo.NORMALIZE)).module.state_dict()
    state["bn1.running_mean"] *= float("nan")
    save_file(state, tmp_path / "broken.safetensors")
    teacher = f"{demo.TEACHER}@{tmp_path / 'broken.safetensors'}"
    assert lab.dfkd("select", "--teacher", teacher, *lab.flags, "--pool", pale, "--out", tmp_path / "s") == 2
    told = capsys.readouterr().err
    assert "the images are not filtered: filter fitted:size=5 cannot be used: filter has numbers that are not" in told
    assert "no image of the pool can be used" in told


def test_selections_through_different_filters_are_mixed(lab, pale, tmp_path):
    assert select(lab, tmp_path / "a", pale, "--count", 100) == 0
    assert select(lab, tmp_path / "b", pale, "--count", 100, "--filter", "blur:sigma=0.5") == 0
    assert lab.distill(tmp_path / "a", tmp_path / "run", "--samples", tmp_path / "a", tmp_path / "b", *TWO_STEPS) == 0


def test_a_small_pool_is_taken_as_it_is_and_one_image_shows_nothing(lab, tmp_path, capsys):
    np.savez(tmp_path / "few.npz", images=demo.patches(199))
    assert select(lab, tmp_path / "s", tmp_path / "few.npz", "--count", 10) == 0
    assert "filter" not in manifest(tmp_path / "s")
    np.savez(tmp_path / "one.npz", images=demo.patches(1))
    assert select(lab, tmp_path / "t", tmp_path / "one.npz", "--filter", "fitted") == 2
    assert "needs at least 2 readable images of the pool; give --filter none" in capsys.readouterr().err


def test_a_filter_that_is_damaged_in_the_manifest_is_told(lab, pale, tmp_path, capsys):
    from dfkd.system.checksums import sealed, unsealed

    assert select(lab, tmp_path / "s", pale, "--count", 100) == 0
    whole = unsealed(manifest(tmp_path / "s"))
    for filter, why in (
        ({**whole["filter"], "bias": [0.0, 0.0]}, "filter has a kernel of [1, 1, 5, 5] and a bias of [2]"),
        ({**whole["filter"], "inception_score": [1.0]}, "filter has no scores"),
        ([1], "filter is not a table"),
    ):
        (tmp_path / "s" / "manifest.json").write_text(json.dumps(sealed({**whole, "filter": filter})))
        assert lab.dfkd("inspect", tmp_path / "s") == 2
        assert f"manifest.json cannot be read ({why})" in capsys.readouterr().err
