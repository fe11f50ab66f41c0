import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from dfkd.app import pipeline
from dfkd.app.pipeline_file import read_pipeline
from dfkd.config import GenerateConfig
from dfkd.config.stage_table import Stage
from dfkd.distill.trainer import Trainer
from dfkd.system.errors import RequestError
from dfkd.system.locks import locked

FILE = """
out = "{out}"
seeds = [0, 3]
[defaults]
teacher = "{teacher}"
normalize = "0.5/0.5"
image-size = 16
precision = "fp32"
pool = ["{pool}"]
filter = "none"
student = "cifar_resnet:depth=8,width=4"
steps = 6
batch-size = 16
init = "none"
test = "{heldout}"
[select.random]
method = "random"
count = 60
[select.sure]
method = "confidence"
count = 50
[distill.plain]
samples = ["random"]
loss = ["kd"]
[distill.both]
samples = ["random", "sure"]
"""


@pytest.fixture
def file(lab, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(FILE.format(out=tmp_path / "out", teacher=lab.teacher, pool=lab.few, heldout=lab.few_heldout))
    return path


def test_a_pipeline_runs_compares_and_is_not_done_again(lab, file, tmp_path, monkeypatch, capsys):
    assert lab.dfkd("run", file) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "samples").iterdir()) == [
        "random-seed0",
        "random-seed3",
        "sure-seed0",
        "sure-seed3",
    ]
    assert sorted(p.name for p in (out / "runs").iterdir()) == [
        "both-seed0",
        "both-seed3",
        "plain-seed0",
        "plain-seed3",
    ]
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    with (out / "report.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["name"], row["seed"]) for row in rows} == {
        ("both", "0"),
        ("both", "3"),
        ("plain", "0"),
        ("plain", "3"),
    }
    assert "both" in capsys.readouterr().out

    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))
    assert lab.dfkd("run", file) == 0
    with file.open("a") as stream:  # another row: only that one is left to do
        stream.write('[distill.third]\nsamples = ["sure"]\n')
    monkeypatch.undo()
    assert lab.dfkd("run", file) == 0
    assert len(list((out / "runs").iterdir())) == 6


def test_a_stage_that_another_command_is_at_is_done_later(lab, file, tmp_path, monkeypatch, capsys):
    held, slept = contextlib.ExitStack(), []

    def sleep(seconds):
        slept.append(seconds)
        held.close()

    monkeypatch.setattr("dfkd.app.pipeline.time.sleep", sleep)
    with held:
        held.enter_context(locked(tmp_path / "out" / "samples" / "random-seed0.partial", "out"))
        held.enter_context(locked(tmp_path / "out" / "samples" / "random-seed3.partial", "out"))
        assert lab.dfkd("run", file) == 0
    said = capsys.readouterr().err
    stages = [line.split()[0] for line in said.splitlines() if line.startswith("[")]
    assert stages == [f"[{number}/8]" for number in (2, 4, 1, 3, 5, 6, 7, 8)]
    assert slept == [pipeline.POLL]
    assert said.count("6 of 8 stages are left, and other commands run them: waiting") == 1


def test_a_stage_that_another_command_has_just_begun_is_done_later(lab, file, tmp_path, monkeypatch, capsys):
    held = contextlib.ExitStack()
    monkeypatch.setattr(Stage, "is_held", lambda self, config: False)
    monkeypatch.setattr("dfkd.app.pipeline.time.sleep", lambda seconds: seconds == pipeline.POLL and held.close())
    with held:
        held.enter_context(locked(tmp_path / "out" / "runs" / "plain-seed0", "out"))
        assert lab.dfkd("run", file, "--only", "plain") == 0
    assert capsys.readouterr().err.count("another command runs it") == 1
    assert (tmp_path / "out" / "runs" / "plain-seed0" / "result.json").exists()


def test_a_row_waits_for_the_run_that_it_begins_with(lab, file, tmp_path, monkeypatch, capsys):
    run = tmp_path / "out" / "runs" / "plain-seed0"
    with file.open("a") as stream:
        stream.write(f'[distill.more]\nsamples = ["random"]\nstudent = "{run}"\n')
        weights = f"cifar_resnet:depth=8,width=4@{run}/student.safetensors"
        stream.write(f'[distill.again]\nsamples = ["random"]\nstudent = "{weights}"\n')
    held = contextlib.ExitStack()
    monkeypatch.setattr("dfkd.app.pipeline.time.sleep", lambda seconds: seconds == pipeline.POLL and held.close())
    with held:
        held.enter_context(locked(run, "out"))
        assert lab.dfkd("run", file, "--only", "plain", "more", "again") == 0
    stages = [line.split()[-1] for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert stages.index("plain-seed0") < min(stages.index("more-seed0"), stages.index("again-seed0"))
    assert stages.index("plain-seed3") < stages.index("plain-seed0"), "nobody was at that one"


def test_stages_that_need_each_other_are_refused(with_generators):
    text = with_generators.read_text()
    with_generators.write_text(
        text + '[generate.a]\nmethod = "dafl"\nfill = "b"\n[generate.b]\nmethod = "dafl"\nfill = "a"\n'
    )
    with pytest.raises(RequestError, match="a-seed0, b-seed0, a-seed3, b-seed3 need their own or each other's results"):
        read_pipeline(with_generators)
    with_generators.write_text(text + '[generate.a]\nmethod = "dafl"\nfill = "a"\n')
    with pytest.raises(RequestError, match="a-seed0, a-seed3 need their own"):
        read_pipeline(with_generators)


@pytest.mark.slow
def test_one_file_given_twice_at_once_does_everything_once(file, tmp_path):
    file.write_text(file.read_text().replace("seeds = [0, 3]", "seeds = [3]"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dfkd", "run", str(file)]
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    # each of the 4 stages was found complete by the one that did not do it
    assert sum(text.count("complete already") for text in said) == 4
    with (tmp_path / "out" / "report.csv").open() as rows:
        assert sorted({row["name"] for row in csv.DictReader(rows)}) == ["both", "plain"]


def test_only_some_rows_run_and_the_report_has_all_that_are_complete(lab, file, tmp_path, capsys):
    out = tmp_path / "out"
    file.write_text(file.read_text().replace("seeds = [0, 3]", "seeds = [3]"))

    def reported():
        with (out / "report.csv").open() as stream:
            return {row["name"] for row in csv.DictReader(stream)}

    assert lab.dfkd("run", file, "--only", "plain") == 0
    assert [p.name for p in (out / "samples").iterdir()] == ["random-seed3"], "what no row needs is not selected"
    assert reported() == {"plain"}
    assert lab.dfkd("run", file, "--only", "both") == 0
    assert reported() == {"plain", "both"}
    file.write_text(file.read_text().replace('loss = ["kd"]', 'loss = ["kd:temperature=2"]'))
    assert lab.dfkd("run", file, "--only", "both") == 0
    assert reported() == {"both"}, "a run of what the file said once is not the file's row"
    assert "plain-seed3 is left out: the file has another loss now" in capsys.readouterr().err
    assert lab.dfkd("run", file, "--only", "plian") == 2
    assert "--only 'plian' is not a [distill.NAME] of the file; did you mean 'plain'?" in capsys.readouterr().err


def test_a_row_alone_makes_the_run_that_it_begins_with(lab, file, tmp_path):
    with file.open("a") as stream:
        stream.write(f'[distill.more]\nsamples = ["sure"]\nstudent = "{tmp_path}/out/runs/plain-seed3"\n')
    file.write_text(file.read_text().replace("seeds = [0, 3]", "seeds = [3]"))
    assert lab.dfkd("run", file, "--only", "more") == 0
    assert sorted(p.name for p in (tmp_path / "out" / "runs").iterdir()) == ["more-seed3", "plain-seed3"]


def test_what_a_row_fills_up_is_selected_too(with_generators):
    with with_generators.open("a") as stream:
        stream.write('[distill.full]\nsamples = ["filled"]\n')
    part = read_pipeline(with_generators).part(["full"])
    assert [Path(s.out).name for s in part.selections] == [
        "random-seed0",
        "filled-seed0",
        "random-seed3",
        "filled-seed3",
    ]
    assert [(d.name, d.seed) for d in part.distillations] == [("full", 0), ("full", 3)]


def test_what_is_made_from_a_selection_needs_it_too(with_generators):
    with with_generators.open("a") as stream:
        stream.write('[generate.patches]\nmethod = "mosaickd"\nsamples = ["random"]\n')
        stream.write('[generate.more]\nmethod = "dafl"\nfill = "patches"\n[distill.last]\nsamples = ["more"]\n')
    part = read_pipeline(with_generators).part(["last"])
    assert [Path(s.out).name for s in part.selections] == [
        *("random-seed0", "patches-seed0", "more-seed0"),
        *("random-seed3", "patches-seed3", "more-seed3"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('loss = ["kd"]', 'loss = ["kdd"]', "mine.toml, plain-seed0: no loss is called 'kdd'"),
        (
            'loss = ["kd"]',
            "epochs = 1\nsteps = 1",
            "mine.toml, plain-seed0: --epochs 1 and --steps 1 both set the length",
        ),
        ('loss = ["kd"]', 'student = "nonet"', "mine.toml, plain-seed0: no model is called 'nonet'"),
        ('loss = ["kd"]', 'test = "gone.npz"', "mine.toml, plain-seed0: there is no file or folder 'gone.npz'"),
        ('loss = ["kd"]', 'batches = "class"', "mine.toml, plain-seed0: no order of batches is called 'class'"),
        ("count = 50", 'pool = ["gone.npz"]', "mine.toml, sure-seed0: there is no file or folder 'gone.npz'"),
        ("count = 50", "count = 5000", "mine.toml, sure-seed0: --count 5000 is above the pool's \\d+ images"),
        ('loss = ["kd"]', 'student = "lenet5@gone.pt"', "mine.toml, plain-seed0: there is no file 'gone.pt'"),
        ('loss = ["kd"]', 'teacher = "gone.pt2"', "mine.toml, plain-seed0: there is no file 'gone.pt2'"),
        ('loss = ["kd"]', 'student = "./gone"', "mine.toml, plain-seed0: './gone' is not a finished RUN"),
        ('loss = ["kd"]', 'teacher = "lenet5@gone.pt"', "mine.toml, plain-seed0: there is no file 'gone.pt'"),
        ('method = "confidence"', 'method = "confident"', "mine.toml, sure-seed0: no selection method is called"),
        ('method = "confidence"', "gamma = 3", r"mine.toml \[select.sure\]: --gamma 3.0 is not above 0"),
    ],
)
def test_a_mistake_in_a_late_stage_is_told_before_the_first_one_runs(lab, file, tmp_path, capsys, old, new, said):
    file.write_text(file.read_text().replace(old, new))
    assert lab.dfkd("run", file) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(said, last), last
    assert not (tmp_path / "out").exists()


def test_seeds_are_outside_rows(file):
    found = read_pipeline(file)
    assert [(d.name, d.seed) for d in found.distillations] == [("plain", 0), ("both", 0), ("plain", 3), ("both", 3)]
    assert [s.seed for s in found.selections] == [0, 0, 3, 3]
    assert found.distillations[3].samples == (found.selections[2].out, found.selections[3].out)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [0, 3]", "seeds = [1, 1]", "not a list of different whole numbers"),
        ("seeds = [0, 3]", "seeds = 3", "seeds is not a list$"),
        ("seeds = [0, 3]", "sedes = [0]", "did you mean 'seeds'"),
        ("steps = 6", "stesp = 6", r"\[defaults\] has no option 'stesp'; did you mean 'steps'"),
        ("count = 60", 'count = "x"', r"\[select.random\]: count='x' is not a whole number"),
        ('samples = ["random"]', 'samples = ["randm"]', "did you mean 'random'"),
        ('loss = ["kd"]', "seed = 5", "'seed' cannot be set in a pipeline"),
        ('samples = ["random"]', "", r"\[distill.plain\]: no samples"),
    ],
)
def test_a_file_is_checked_whole_before_anything_runs(file, old, new, said):
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(RequestError, match=said):
        read_pipeline(file)


@pytest.mark.parametrize(("out", "said"), [('""', "out is empty; name a folder"), ("1", "out is not text$")])
def test_the_folder_of_a_file_is_checked(file, out, said):
    file.write_text(re.sub("(?m)^out = .*$", f"out = {out}", file.read_text()))
    with pytest.raises(RequestError, match=said):
        read_pipeline(file)


def test_a_file_may_begin_with_a_byte_order_mark(file):
    expected = read_pipeline(file)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_pipeline(file) == expected


def test_samples_may_be_a_selection_of_an_object_store_as_for_distill(file):
    file.write_text(file.read_text().replace('samples = ["random"]', 'samples = ["s3://bucket/some", "random"]', 1))
    pipeline = read_pipeline(file)
    assert pipeline.distillations[0].samples == ("s3://bucket/some", pipeline.selections[0].out)


def test_a_preset_of_a_table_beats_the_defaults_and_gives_way_to_the_table(file, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[distill]\nloss = ["kd:temperature=1"]\nepochs = 3\nlr = 0.3\n')
    row = f'[distill.recipe]\npreset = "{recipe}"\nsamples = ["random"]\nlr = 0.2\n'
    file.write_text(file.read_text() + row)
    plain, _, recipes = (d for d in read_pipeline(file).distillations if d.seed == 0)
    assert (plain.loss, plain.steps, plain.epochs, plain.lr) == (("kd",), 6, None, None)
    assert (recipes.loss, recipes.steps, recipes.epochs, recipes.lr) == (("kd:temperature=1",), None, 3, 0.2)
    assert recipes.batch_size == 16, "what the recipe leaves open is the defaults'"


def test_a_preset_of_the_defaults_gives_way_to_them(file, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[distill]\nsteps = 3\nlr = 0.3\n")
    file.write_text(file.read_text().replace("[defaults]", f'[defaults]\npreset = "{recipe}"'))
    first = read_pipeline(file).distillations[0]
    assert (first.steps, first.lr) == (6, 0.3)


def test_the_pipelines_that_come_along_are_valid(monkeypatch):

    monkeypatch.setenv("DFKD_DATA", "/data")
    monkeypatch.setenv("DFKD_TEACHERS", "/teachers")
    files = sorted((Path(__file__).parents[2] / "pipelines").glob("*.toml"))
    assert files
    for path in files:
        pipeline = read_pipeline(path)
        outs = {d.out for d in pipeline.distillations}
        for goes_on in (False, True):  # with another row's student; compared at equal optimizer steps, either way
            rows = [d for d in pipeline.distillations if (d.student in outs) == goes_on]
            assert len({d.steps for d in rows}) == (1 if rows else 0)
            assert rows or goes_on
        assert len({d.seed for d in pipeline.distillations}) >= 2


@pytest.mark.slow
def test_the_demo_from_nothing_to_its_report(lab, tmp_path, capsys, monkeypatch):
    from dfkd.app import demo

    monkeypatch.setattr(demo, "POOL_IMAGES", 1200)
    monkeypatch.setattr(demo, "SELECTED", 200)
    monkeypatch.setattr(demo, "GENERATOR", "deepinversion:steps=2")
    monkeypatch.setattr(demo, "GENERATED", 128)
    monkeypatch.setattr(demo, "train_teacher", partial(demo.train_teacher, epochs=6))
    assert lab.dfkd("demo", "--out", tmp_path / "demo", "--seeds", 1, "--steps", 5) == 0
    said = capsys.readouterr()
    assert str(tmp_path / "demo" / "report.html") in said.err
    assert all(name in said.out for name in ("random", "confident", "ours", "generated"))
    lines = [line for line in said.err.splitlines() if line.startswith("[")]
    assert [line.partition("]")[0] for line in lines] == [f"[{n}/8" for n in range(1, 9)]
    before, _, after = said.err.partition(lines[0])
    assert len(before.splitlines()) <= 3 and "training" not in after  # no line or bar of a stage beside its own
    shares = {name: float(share) for name, share in re.findall(r"(\w+) ([\d.]+)%", said.err.split("patches: ")[1])}
    assert 5 < shares["random"] < 15 and shares["ours"] > 1.5 * shares["random"]
    for name in ("random", "confident", "ours", "generated"):
        result = json.loads((tmp_path / "demo" / "runs" / f"{name}-seed0" / "result.json").read_text())
        assert (result["steps"], result["test_images"]) == (5, 714)
        assert result["teacher_top1"] > 0.95
    assert lab.dfkd("demo", "--out", tmp_path / "demo", "--seeds", 2, "--steps", 5) == 2
    assert "holds a demo with other --seeds or --steps" in capsys.readouterr().err
    assert lab.dfkd("demo", "--out", tmp_path) == 2


def test_inspect_shows_the_selection(lab, selection, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert lab.dfkd("inspect", selection, "--out", page) == 0
    assert "400" in capsys.readouterr().out
    assert page.read_text().count("data:image/png") > 20


@pytest.fixture
def with_generators(file):
    """The pipeline with made images, and rows that learn from them and from a generator."""
    tiny = 'batch-size = 16\nmethod = "dafl:latent=4,width=2"\n'
    made = f"[generate.made]\nsteps = 2\ncount = 20\n{tiny}"
    # with so many more than the 60 images every class lacks some, also the one that two steps happen to make
    made += f'[generate.filled]\nsteps = 2\ncount = 600\nfill = "random"\n{tiny}'
    rows = '[distill.from-made]\nsamples = ["made", "random"]\nweights = [1, 2]\n'
    rows += '[distill.along]\nsource = "dafl:latent=4,width=2"\n'
    file.write_text(file.read_text() + made + rows)
    return file


@pytest.mark.slow
def test_a_pipeline_makes_images_and_rows_learn_from_them(lab, with_generators, tmp_path):
    pipeline = read_pipeline(with_generators)
    names = [Path(s.out).name for s in pipeline.selections]
    assert names[-2:] == ["made-seed3", "filled-seed3"] and len(names) == 8
    assert pipeline.selections[-1].fill == str(pipeline.out / "samples" / "random-seed3")
    assert {s.steps for s in pipeline.selections if isinstance(s, GenerateConfig)} == {2}, "not the defaults' steps"
    assert pipeline.distillations[2].samples == tuple(
        str(pipeline.out / "samples" / name) for name in ("made-seed0", "random-seed0")
    )
    assert lab.dfkd("run", with_generators) == 0
    with (pipeline.out / "report.csv").open() as stream:
        rows = {(row["name"], row["seed"]): row for row in csv.DictReader(stream)}
    assert rows["from-made", "0"]["source"] == "dafl+selection" and rows["along", "3"]["source"] == "dafl"
    assert (pipeline.out / "samples" / "made-seed0" / "manifest.json").exists()


def test_made_images_and_selections_have_names_of_their_own(with_generators):
    with_generators.write_text(with_generators.read_text().replace("[generate.made]", "[generate.random]"))
    with pytest.raises(RequestError, match="'random' is the name of a selection and of generated images"):
        read_pipeline(with_generators)
