"""What a data-free run opens, and what its files tell of the machine and its user."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfkd import config
from dfkd.app import demo
from dfkd.config import tables
from dfkd.system import portable

HOOK = """
import os, sys

forbidden = os.path.realpath(sys.argv[1])
seen = []

def watch(event, arguments):
    # every way in which Python opens, lists, links or asks for a file raises one of these
    if event.split(".")[0] in ("open", "os", "shutil", "glob", "pathlib", "mmap", "ctypes"):
        for argument in arguments:
            if isinstance(argument, (str, bytes)):
                path = os.path.abspath(os.fsdecode(argument))
                seen.append(path)
                if os.path.commonpath([path, forbidden]) == forbidden:
                    raise PermissionError(f"private data touched by {event}: {path}")

from dfkd.app import cli
from dfkd.distill.init import reconstruct
from dfkd.select import filters
reconstruct._IMAGES, filters._STEPS = 128, 8
sys.addaudithook(watch)
for line in sys.stdin:
    status = cli.main(line.rstrip("\\n").split("\\t"))
    if status:
        sys.exit(status)
print("pool.npz" in {os.path.basename(path) for path in seen})
"""


def commands(folder, teacher, *more):
    """Select, distill and inspect, as lines for the hook's process."""
    select = ("select", "--teacher", teacher, "--normalize", demo.NORMALIZE, "--image-size", demo.SIDE)
    select += ("--pool", folder / "pool.npz", "--out", folder / "selection", "--count", 50, "--precision", "fp32")
    distill = ("distill", "--teacher", teacher, "--student", "cifar_resnet:depth=8,width=4", "--steps", 2)
    distill += ("--batch-size", 8, "--samples", folder / "selection", "--out", folder / "run", "--precision", "fp32")
    inspect = ("inspect", folder / "selection", "--out", folder / "selection.html")
    return [[str(word) for word in line] for line in (select, distill, inspect, *more)]


@pytest.fixture
def workplace(lab, tmp_path):
    """The lab's teacher and pool in a home of one's own, with the private data beside the pool."""
    home = tmp_path / "home" / "somebody"
    (home / "work" / "private").mkdir(parents=True)
    for name in ("teacher.safetensors", "pool.npz"):
        (home / "work" / name).write_bytes(Path(lab.folder / name).read_bytes())
    (home / "work" / "private" / "heldout.npz").write_bytes(Path(lab.heldout).read_bytes())
    return home


def run(home, lines, **more):
    environment = {"HOME": str(home), "USER": "somebody", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **more}
    repository = str(Path(demo.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", HOOK, str(home / "work" / "private")],
        input="".join("\t".join(line) + "\n" for line in lines),
        env={**environment, "PYTHONPATH": repository},
        cwd=home / "work",
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_data_free_run_touches_no_private_data(workplace):
    work = workplace / "work"
    teacher = f"{demo.TEACHER}@{work / 'teacher.safetensors'}"
    done = run(workplace, commands(work, teacher))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("True")  # the hook saw the pool
    assert (work / "run" / "student.safetensors").exists()
    # and the hook does forbid: evaluation wants the labels, and may not have them
    private = ["evaluate", "--model", "run", "--data", str(work / "private" / "heldout.npz")]
    refused = run(workplace, [private])
    assert refused.returncode != 0
    assert "private data touched by" in refused.stderr


def text_of(path):
    """A file's content as text, with what compression would hide."""
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pydict()) + str(pq.read_metadata(path).metadata)
    return path.read_bytes().decode("latin-1")


@pytest.mark.slow
def test_no_file_tells_of_the_machine_or_its_user(workplace, lab):
    """Every stage, with absolute paths on the command line, `$NAME` in a pipeline and the demo's own files."""
    work, store = workplace / "work", workplace.parents[1] / "store" / "somebody"
    store.mkdir(parents=True)
    np.savez(store / "held.npz", **np.load(lab.heldout))
    teacher = f"{demo.TEACHER}@{work / 'teacher.safetensors'}"
    pipeline = {
        "out": "~/work/pipeline",
        "defaults": {
            "teacher": f"{demo.TEACHER}@$SECRET_PLACE/teacher.safetensors",
            "normalize": demo.NORMALIZE,
            "image-size": demo.SIDE,
            "precision": "fp32",
            "pool": ["$SECRET_PLACE/pool.npz"],
            "student": "cifar_resnet:depth=8,width=4",
            "test": str(store / "held.npz"),
        },
        "select": {"a": {"count": 40}},
        "distill": {"b": {"samples": ["a"], "steps": 2, "batch-size": 8}},
    }
    import tomli_w

    outside = workplace.parents[1] / "p.toml"
    outside.write_text(tomli_w.dumps(pipeline))
    (place := workplace.parents[1] / "a-secret-value").symlink_to(work)
    figures = ["evaluate", "--model", work / "run", "--data", store / "held.npz", "--json", work / "figures.json"]
    figures += ["--teacher", teacher, "--normalize", demo.NORMALIZE]
    more = (
        ["export", "--model", work / "run", "--out", work / "m.pt2"],
        ["export", "--model", work / "run", "--out", work / "m.onnx"],
        ["export", "--model", work / "run", "--out", work / "m.safetensors"],
        ["compare", work / "run", "--out", work / "report.html"],
        figures,
        ["run", outside],
    )
    before = {path for path in workplace.rglob("*") if path.is_file()}
    done = run(workplace, commands(work, teacher, *more), SECRET_PLACE=str(place))
    assert done.returncode == 0, done.stderr
    written = [path for path in workplace.rglob("*") if path.is_file() and path not in before]
    names = {path.name for path in written}
    expected = {"manifest.json", "scores.parquet", "config.toml", "result.json", "state.pt", "metrics.jsonl"}
    expected |= {"m.pt2", "m.onnx", "report.html", "report.csv", "selection.html", "figures.json", "request.json"}
    assert expected <= names
    given = f"{store.parent}/$USER/held.npz"  # outside the home a path stays as it was given, but for the user's name
    for path in written:
        found = text_of(path)
        assert "somebody" not in found and "a-secret-value" not in found, path
        for secret in (str(store.parents[1]), str(Path(demo.__file__).parents[2])):
            assert secret not in found.replace("&quot;", "").replace(given, ""), path
    asked = (work / "pipeline" / "runs" / "b-seed0" / "config.toml").read_text()
    assert "@$SECRET_PLACE/teacher.safetensors" in asked and given in asked
    page = (work / "report.html").read_text()
    assert "&quot;$HOME&quot;/work/teacher.safetensors" in page


def test_the_demo_writes_a_pipeline_without_its_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = demo.pipeline_text(tmp_path / "demo", 1, 2)
    assert str(tmp_path) not in text
    values = tables.check_mapping(config.SelectConfig, {"pool": ["~/demo/pool.npz"], "teacher": "n@~/demo/t.pt"}, "x")
    assert values == {"pool": (f"{tmp_path}/demo/pool.npz",), "teacher": f"n@{tmp_path}/demo/t.pt"}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("net:depth=8@/home/somebody/w.pt", "net:depth=8@~/w.pt"),
        ("/scratch/somebody/pool", "/scratch/$USER/pool"),
        ("my.net:a=/home/somebody/x,b=2", "my.net:a=~/x,b=2"),
        (["/home/somebody", {"k": "/mnt/somebody"}, 3, None], ["~", {"k": "/mnt/$USER"}, 3, None]),
        ("$DATA/pool.npz", "$DATA/pool.npz"),
        ("somebody.net", "somebody.net"),
        ("p\udcff", "p\\udcff"),
    ],
)
def test_portable(monkeypatch, text, stored):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("DATA", "/volumes/3/data")
    assert portable.portable(portable.expand(text) if isinstance(text, str) else text) == stored
