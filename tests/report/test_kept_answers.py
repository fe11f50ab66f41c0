"""What `inspect` shows of the teacher's answers: an embedding, and groups of near-duplicates."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.app.cli import main
from dfkd.models import lenet5
from dfkd.report.contents import read
from dfkd.report.embedding import embedding, principal
from dfkd.report.kept_answers import KeptAnswers, kept_answers
from dfkd.report.near_groups import near_groups
from dfkd.report.pool_scores import ScoredPool
from dfkd.select.choose import NEAR_DUPLICATE, NOT_ADMITTED, NOT_DRAWN, SELECTED
from dfkd.select.stored_scores import PoolScores, features_file
from dfkd.system.checked_parquet import write_columns

TWICE = ((20, 0), (21, 0), (22, 1))
"""Images of the pool that are others again."""


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A selection without near-duplicates, of 24 images that went through a filter; its folder and the pool's file."""
    folder = tmp_path_factory.mktemp("kept")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 28, 28, 1), dtype=np.uint8)
    for copy, of in TWICE:
        images[copy] = images[of]
    np.savez(folder / "pool.npz", images=images)
    torch.manual_seed(0)
    save_file(lenet5(num_classes=3, in_channels=1).state_dict(), folder / "t.safetensors")
    code = "import torch\nfrom dfkd.data.images.filter import Filter\n\ndef twice(teacher, pixels):\n"
    code += "    return Filter(torch.full((1, 1, 1, 1), 0.3), torch.zeros(1))\n"
    (folder / "own_filter_of_kept.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("DFKD_CACHE", str(folder / "cache"))
        given = ["--teacher", f"lenet5:in_channels=1,num_classes=3@{folder / 't.safetensors'}", "--normalize", "none"]
        given += ["--pool", str(folder / "pool.npz"), "--image-size", "28", "--device", "cpu", "--precision", "fp32"]
        given += ["--filter", "own_filter_of_kept.twice", "--deduplicate", "0.99999", "--count", "12"]
        given += ["--method", "threshold", "--gamma", "1"]
        assert main(["select", *given, "--out", str(folder / "selection")]) == 0
    return folder


def test_kept_answers__are_features_then_logits_then_those_of_the_shards(selected, monkeypatch, tmp_path):
    monkeypatch.setenv("DFKD_CACHE", str(selected / "cache"))
    contents = read(selected / "selection")
    assert contents.scored is not None
    found = kept_answers(contents.shards, contents.scored)
    features = np.concatenate([*found.read(np.arange(24))])
    assert found.kind == "features" and found.knows(np.arange(24)).all()
    for copy, of in TWICE:
        np.testing.assert_array_equal(features[copy], features[of])
    for file in (selected / "cache").rglob("features-*"):
        file.rename(tmp_path / file.name)
    logits = kept_answers(contents.shards, contents.scored)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "none"))
    stored = kept_answers(contents.shards, contents.scored)
    assert logits.kind == stored.kind == "logits" and logits.cached is not None and stored.cached is None
    picked = contents.scored.row[contents.scored.of(SELECTED)]
    assert stored.knows(np.arange(24)).sum() == len(picked) == 12
    both = [np.concatenate([*answers.read(picked)]) for answers in (logits, stored)]
    np.testing.assert_array_equal(*both)
    for file in tmp_path.glob("features-*"):
        file.rename(next((selected / "cache" / "scores").iterdir()) / file.name)


def test_inspect__shows_groups_of_near_duplicates_and_an_embedding(selected, monkeypatch, tmp_path):
    monkeypatch.setenv("DFKD_CACHE", str(selected / "cache"))
    given = ["inspect", str(selected / "selection"), "--pool", str(selected / "pool.npz")]
    assert main([*given, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    groups = page.partition("<h3>Groups of near-duplicates</h3>")[2]
    assert re.findall(r"<h4>([^<]+)", groups) == [
        "One image and 2 near-duplicates of it",
        "One image and 1 near-duplicate of it",
    ]
    assert groups.count("<figcaption>cosine 1.000") == 3 and groups.count("<figcaption>kept") == 2
    pool = json.loads(re.search(r'id="pool">(.*?)</script>', page)[1])
    assert pool["east"] and pool["north"] and "two directions of the teacher&#x27;s features" in page
    for file in (selected / "cache").rglob("*.parquet"):  # damaged
        file.write_bytes(b"PAR1")
    assert main([*given, "--out", str(tmp_path / "again.html")]) == 0
    assert "Groups of near-duplicates" not in (tmp_path / "again.html").read_text()


def answers_of(folder, features, reasons):
    """Features of a pool in a cache, and its scores."""
    count, tap = len(features), "fc"
    write_columns(features_file(folder, 0, tap), {"features": features.astype(np.float16)})
    rows = np.arange(count)
    scored = ScoredPool(rows / count, rows / count, rows % 2, np.array(reasons), rows, count)
    return scored, PoolScores(folder, tap, count, {})


def test_near_groups__finds_for_each_the_image_that_it_is_nearest_to(make_selection, tmp_path):
    angles = np.radians([0, 90, 1, 2, 91, 200, 3])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    out = [NEAR_DUPLICATE] * 3
    reasons = [SELECTED, NOT_DRAWN, *out, NOT_ADMITTED, NEAR_DUPLICATE]
    scored, cached = answers_of(tmp_path, features, reasons)
    shards = read(make_selection(tmp_path / "s", [0], 2)).shards
    first, second = near_groups(scored, KeptAnswers(shards, scored, cached, "features"), 0.99)
    assert (first.kept, first.others.tolist()) == (0, [2, 3, 6])
    assert first.similarity == pytest.approx(np.cos(np.radians([1, 2, 3])), abs=1e-3)
    assert (second.kept, second.others.tolist()) == (1, [4])


def test_embedding__has_the_two_directions_in_which_answers_vary_most(make_selection, tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 5)) * [0.1, 8, 0.1, 3, 0.1]
    scored, cached = answers_of(tmp_path, features, [SELECTED] * 50)
    shards = read(make_selection(tmp_path / "s", [0], 2)).shards
    found = embedding(KeptAnswers(shards, scored, cached, "features"), np.arange(50))
    assert found.share > 0.99
    stored = features.astype(np.float16).astype(float)
    left, lengths, _ = np.linalg.svd(stored - stored.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left * lengths)[:, :2], atol=1e-3)


def test_principal__of_answers_that_are_all_the_same_has_no_share():
    center, directions, share = principal(np.ones((4, 1), np.float32))
    assert center.tolist() == [1] and directions.tolist() == [[1, 0]] and share == 0
