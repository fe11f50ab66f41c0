"""`dfkd select --part K/N`: several commands, on several machines, score one pool; one selects."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dfkd.models.classifier import Classifier
from dfkd.select import pool_filter, stage, stored_scores, streaming
from dfkd.select.share import PoolShare
from dfkd.system.errors import RequestError


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def lab(lab):
    """The lab with few images."""
    return replace(lab, pool=lab.few)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Small parts, and a cache of the test's own: a function that names it."""
    monkeypatch.setattr(stored_scores, "PART_ROWS", 25)  # five of the 120 images, the last of 20
    return lambda name: monkeypatch.setenv("DFKD_CACHE", str(tmp_path / f"cache-{name}"))


@pytest.fixture
def scored(monkeypatch):
    """The sizes of the batches that the teacher has seen."""
    batches, whole = [], Classifier.__call__
    monkeypatch.setattr(Classifier, "__call__", lambda self, x: (batches.append(len(x)), whole(self, x))[1])
    return batches


def test_shares_that_were_scored_apart_are_one_selection(lab, tmp_path, cache, scored, capsys):
    cache("whole")
    assert lab.select(tmp_path / "whole", "--count", 40) == 0
    cache("parts")
    for part, images in (("2/2", 70), ("1/2", 50)):
        scored.clear()
        assert lab.select(tmp_path / "apart", "--count", 40, "--part", part) == 0
        assert sum(scored) == images
        assert f"part {part} is scored; the same command without --part selects" in capsys.readouterr().err
        assert not (tmp_path / "apart").exists()
    scored.clear()
    assert lab.select(tmp_path / "apart", "--count", 40) == 0
    assert scored == []
    assert "all 120 are cached" in capsys.readouterr().err
    assert tree(tmp_path / "apart") == tree(tmp_path / "whole")


def test_a_part_without_images_says_so(lab, tmp_path, cache, capsys):
    cache("parts")
    assert lab.select(tmp_path / "apart", "--part", "1/9") == 0
    assert "scores: no images are in this part, because the pool has only 5 pieces" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "threshold"),
        ("--method", "threshold:draw=entropy", "--gamma", 0.6, "--balance", "none", "--count", 50),
        ("--method", "statistics", "--count", 31),
    ],
)
def test_a_pool_whose_scores_are_not_held_in_memory_is_the_same_selection(lab, tmp_path, cache, monkeypatch, options):
    cache("whole")
    assert lab.select(tmp_path / "held", *options) == 0
    monkeypatch.setattr(streaming, "IN_MEMORY", 119)
    monkeypatch.setattr(stage, "choose", lambda *a, **k: pytest.fail("chosen in memory"))
    assert lab.select(tmp_path / "read", *options) == 0
    assert tree(tmp_path / "read") == tree(tmp_path / "held")


def test_a_pool_whose_scores_are_not_held_in_memory_is_drawn_from_by_the_seed(
    lab, tmp_path, cache, monkeypatch, capsys
):
    cache("whole")
    monkeypatch.setattr(streaming, "IN_MEMORY", 119)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert lab.select(tmp_path / name, "--method", "random", "--count", 30, "--seed", seed) == 0
    drawn = [(tmp_path / name / "data-00000.arrow").read_bytes() for name in "abc"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert lab.select(tmp_path / "d", "--method", "threshold", "--gamma", 0.1, "--count", 40) == 2
    assert "--count=40 is above the 12 images that are left of 120 usable ones" in capsys.readouterr().err


def test_a_scale_of_ones_own_that_fails_is_one_line(lab, tmp_path, cache, monkeypatch, capsys):
    cache("whole")
    (tmp_path / "own_scale.py").write_text(
        "from dfkd.select.methods import Ranking, Scale, Traits\n"
        "def fails(scores, rng):\n    raise KeyError('nothing')\n"
        "@Traits(scale=lambda far=1.0: Scale(fails))\ndef mine(scores, rng, *, far: float = 1.0):\n    return 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(streaming, "IN_MEMORY", 119)
    assert lab.select(tmp_path / "a", "--method", "own_scale.mine:far=2") == 2
    assert (
        "method 'own_scale.mine:far=2.0' failed: KeyError: 'nothing' (own_scale.py, line 3)" in capsys.readouterr().err
    )


def test_what_is_missing_of_the_shares_is_scored_by_the_last_command(lab, tmp_path, cache, scored):
    cache("parts")
    for part in ("1/4", "4/4"):
        assert lab.select(tmp_path / "s", "--part", part) == 0
    assert sum(scored) == 25 + 45  # of five parts the first, and the last two
    scored.clear()
    assert lab.select(tmp_path / "s") == 0
    assert sum(scored) == 50


def test_every_part_of_a_pool_is_in_one_share():
    for total in (1, 5, 6104):
        for count in (1, 2, 7, 64):
            shares = [PoolShare(number, count).parts(total) for number in range(1, count + 1)]
            assert [part for share in shares for part in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_shares_than_parts_and_a_selection_that_is_there(lab, tmp_path, cache, scored, capsys):
    cache("many")
    assert lab.select(tmp_path / "s", "--part", "1/9") == 0
    assert scored == []
    assert lab.select(tmp_path / "s") == 0
    capsys.readouterr()
    assert lab.select(tmp_path / "s", "--part", "1/9") == 0
    assert "this selection is complete already" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/4", "5/4", "1/0", "x", "", "1/2/3", "-1/2", "1.5/2", "٣/٤"])
def test_what_is_no_share_is_refused(lab, tmp_path, capsys, part):
    assert lab.select(tmp_path / "s", f"--part={part}") == 2
    assert f"--part {part!r} is not K/N with K from 1 to N, such as 1/4, and not slurm" in capsys.readouterr().err


def array_task(**variables):
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in variables.items()}


@pytest.mark.parametrize(
    ("task", "share"),
    [
        (array_task(ID=0, COUNT=16, MIN=0, MAX=15, STEP=1), PoolShare(1, 16)),
        (array_task(ID=15, COUNT=16, MIN=0, MAX=15), PoolShare(16, 16)),
        (array_task(ID=3, COUNT=4, MIN=1, MAX=4, STEP=1), PoolShare(3, 4)),
        (array_task(ID=18, COUNT=3, MIN=10, MAX=18, STEP=4), PoolShare(3, 3)),
    ],
)
def test_part_slurm__counts_from_the_first_task_of_the_array(task, share):
    assert PoolShare.parse("slurm", task) == share


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({}, "SLURM_ARRAY_TASK_ID is not set; submit the command with sbatch --array=0-15, or give K/N"),
        (array_task(ID=1, COUNT=2, MIN=0), "SLURM_ARRAY_TASK_MAX is not set"),
        (array_task(ID="x", COUNT=2, MIN=0, MAX=1), "SLURM_ARRAY_TASK_ID='x' is not a whole number"),
        (array_task(ID=3, COUNT=3, MIN=1, MAX=7), "task 3 of 3 tasks from 1 to 7 in steps of 1 is not in a complete"),
        (
            array_task(ID=2, COUNT=3, MIN=1, MAX=5, STEP=2),
            "task 2 of 3 tasks from 1 to 5 in steps of 2 is not in a complete",
        ),
        (array_task(ID=9, COUNT=2, MIN=0, MAX=1), "task 9 of 2 tasks"),
    ],
)
def test_part_slurm__of_no_range_of_tasks_is_refused(task, said):
    with pytest.raises(RequestError, match=f"--part slurm: {said}"):
        PoolShare.parse("slurm", task)


def test_part_slurm__scores_its_share(lab, tmp_path, cache, scored, monkeypatch, capsys):
    cache("array")
    for name, value in array_task(ID=6, COUNT=2, MIN=5, MAX=6, STEP=1).items():
        monkeypatch.setenv(name, value)
    assert lab.select(tmp_path / "s", "--part", "slurm") == 0
    assert sum(scored) == 70
    assert "part 2/2 is scored" in capsys.readouterr().err


def test_of_the_pool_too_much_can_be_unreadable_and_not_of_a_share(lab, tmp_path, cache, capsys):
    from PIL import Image

    cache("broken")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(np.load(lab.pool)["images"][:100, ..., 0]):
        Image.fromarray(image).save(photos / f"{i:03d}.png")
        if i >= 98:
            (photos / f"{i:03d}.png").write_bytes(b"no picture")
    flags = ("--teacher", lab.teacher, *lab.flags, "--filter", "none", "--max-unreadable", 0.03)
    command = ("select", *flags, "--pool", photos, "--out", tmp_path / "s")
    assert lab.dfkd(*command, "--part", "2/2") == 0  # 4 % of the share, 2 % of the pool
    assert lab.dfkd(*command, "--max-unreadable", 0.01, "--part", "2/2") == 2
    assert "2 of 100 images cannot be read, above --max-unreadable 0.01: photos/098.png" in capsys.readouterr().err
    assert lab.dfkd(*command, "--max-unreadable", 0.01, "--part", "1/2") == 0


def test_of_filters_that_were_found_at_once_the_first_holds_for_all(lab, tmp_path, cache, monkeypatch):
    cache("filter")
    find, begun, told = pool_filter.find, [], []

    def slower(*arguments):
        """While this command looks for its filter, another one finds and keeps its own, with other last bits."""
        begun.append(len(begun))
        if begun == [0]:
            assert lab.select(tmp_path / "other", "--filter", "blur:sigma=1", "--part", "1/1") == 0
        found = find(*arguments)
        told.append(found.before + len(told))
        return pool_filter.Adapted(found.filter, told[-1], found.after)

    monkeypatch.setattr(pool_filter, "find", slower)
    assert lab.select(tmp_path / "s", "--filter", "blur:sigma=1") == 0
    first, second = told
    assert first != second
    (kept,) = (tmp_path / "cache-filter").rglob("filter.json")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    for found in (json.loads(kept.read_text()), manifest["filter"]):
        assert found["inception_score"][0] == first


def test_a_part_has_no_place_in_a_pipeline(lab, tmp_path, capsys):
    (tmp_path / "p.toml").write_text(
        f'[select.a]\nteacher = "{lab.teacher}"\npool = ["{lab.pool}"]\npart = "1/2"\n[distill.b]\nsamples = ["a"]\n'
    )
    assert lab.dfkd("run", tmp_path / "p.toml") == 2
    assert "'part' cannot be set in a pipeline" in capsys.readouterr().err


def test_a_part_in_a_preset_has_no_place_in_a_pipeline_either(lab, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('[select]\npart = "1/2"\n')
    table = f'preset = "{tmp_path / "mine.toml"}"\nteacher = "{lab.teacher}"\npool = ["{lab.pool}"]\n'
    (tmp_path / "p.toml").write_text(f'[select.a]\n{table}[distill.b]\nsamples = ["a"]\n')
    assert lab.dfkd("run", tmp_path / "p.toml") == 2
    assert "'part' cannot be set in a pipeline" in capsys.readouterr().err


@pytest.mark.slow
def test_real_commands_at_once(lab, tmp_path):
    environment = {**os.environ, "DFKD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    flags = ("--teacher", lab.teacher, *lab.flags, "--out", tmp_path / "s", "--count", 30)
    small = "from dfkd.select import filters, stored_scores; stored_scores.PART_ROWS, filters._STEPS = 50, 5"
    program = f"from dfkd.app.cli import entry; {small}; entry()"
    command = [sys.executable, "-c", program, "select", *map(str, flags), "--pool", lab.pool]
    at_once = [
        subprocess.Popen([*command, "--part", f"{k}/3"], env=environment, stderr=subprocess.PIPE, text=True)
        for k in (1, 2, 3)
    ]
    said = [process.communicate()[1] for process in at_once]
    assert [process.returncode for process in at_once] == [0, 0, 0], said
    last = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=True)
    assert "all 120 are cached, the teacher is not run" in last.stderr  # so that all went on with one filter
