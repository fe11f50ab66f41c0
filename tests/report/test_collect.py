import json
from pathlib import Path

import pytest

from dfkd.report.collect import collect, curve, settings
from dfkd.system.checksums import sealed
from dfkd.system.errors import RequestError


def test_runs_of_one_name_are_seeds_in_order_and_the_best_row_is_first(make_run) -> None:
    folders = [make_run("a", 1, top1=0.5), make_run("b", 0, top1=0.6), make_run("a", 0, top1=0.75)]
    folders += [make_run("untested", 0, top1=None, teacher_top1=None), make_run("zero", 0, top1=0.0)]
    rows = collect(folders)
    assert [(row.name, [run.result.seed for run in row.runs]) for row in rows] == [
        ("a", [0, 1]),
        ("b", [0]),
        ("zero", [0]),
        ("untested", [0]),
    ]


def test_mean_and_sample_deviation(make_run) -> None:
    row, single = collect([*(make_run("a", s, top1=t) for s, t in enumerate((0.7, 0.8, 0.6))), make_run("b", top1=0.1)])
    assert row.mean("top1") == pytest.approx(0.7)
    assert row.deviation("top1") == pytest.approx(0.1)  # squares 0, .01, .01 over n - 1 = 2
    assert single.mean("top1") == 0.1 and single.deviation("top1") is None


def test_untested_seeds_are_left_out_of_the_mean(make_run) -> None:
    (row,) = collect([make_run("a", 0, top1=0.5), make_run("a", 1, top1=None)])
    assert row.mean("top1") == 0.5 and row.deviation("top1") is None and row.mean("steps") == 100


def test_two_runs_of_one_name_and_seed_are_refused(make_run) -> None:
    first, second = make_run("a", 3), make_run("a", 3)
    with pytest.raises(RequestError, match="both seed 3 of 'a'") as error:
        collect([first, make_run("a", 0), second])
    assert first in str(error.value) and second in str(error.value)


def test_a_name_for_different_requests_is_refused_with_the_field(make_run) -> None:
    options = {"student": "lenet5_half", "seed": 1, "steps": 100, "peak_rate": 0.2}
    other = make_run("a", 1, content={"options": options})
    with pytest.raises(RequestError, match=r"differ in options\.peak_rate \(0\.4, now 0\.2\)"):
        collect([make_run("a", 0), other])
    architecture = make_run("a", 2, content={"student": {"architecture": "lenet5", "weights": "0"}})
    with pytest.raises(RequestError, match=r"student\.architecture"):
        collect([make_run("a", 0), architecture])
    mixed = make_run("a", 4, content={"selections": ["one", "two"]})
    with pytest.raises(RequestError, match=r"selections \(1, now 2\)"):
        collect([make_run("a", 0), mixed])


def test_weights_that_were_given_are_no_seeds(make_run) -> None:
    first, other = (make_run("a", seed, begins="given") for seed in (0, 1))  # each with weights of its own
    with pytest.raises(RequestError, match=r"student\.weights"):
        collect([first, other])
    with pytest.raises(RequestError, match=r"begins \(given, now random\)"):
        collect([first, make_run("a", 2)])
    same = {"student": {"architecture": "lenet5_half", "weights": "0" * 64}}
    assert len(collect([first, make_run("a", 3, begins="given", content=same)])) == 1


def test_folders_that_are_no_finished_run_are_refused(make_run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="absent does not exist; dfkd distill makes one"):
        collect([str(tmp_path / "absent")])
    with pytest.raises(RequestError, match=r"is not a run: it has no config\.toml"):
        collect([str(tmp_path)])
    unfinished = make_run("a")
    (Path(unfinished) / "result.json").unlink()
    with pytest.raises(RequestError, match="is not finished; leave it out, or give its dfkd distill command again"):
        collect([unfinished])
    with pytest.raises(RequestError, match="give RUN folders"):
        collect([])


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), (json.dumps(sealed({"name": "a"})), "it has no seed")]
)
def test_a_damaged_result_is_refused(make_run, text: str, message: str) -> None:
    folder = make_run("a")
    (Path(folder) / "result.json").write_text(text)
    with pytest.raises(RequestError, match=message):
        collect([folder])


def test_curve_is_the_mean_at_steps_that_all_seeds_logged(make_run) -> None:
    folders = [make_run("a", 0), make_run("a", 1)]
    with (Path(folders[1]) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "loss": 3.0}\n{"step": 100, "loss": NaN, "agreement": 0.3}\n{"step": 2')
    (row,) = collect(folders)
    assert curve(row, "loss") == [(50, pytest.approx((1 / 50 + 1 / 50 + 1) / 2)), (100, pytest.approx(0.51))]
    assert curve(row, "no_such_term") == []


def test_a_run_without_metrics_has_no_curve(make_run) -> None:
    folder = make_run("a")
    (Path(folder) / "metrics.jsonl").unlink()
    assert curve(collect([folder])[0], "loss") == []


def test_settings_list_what_differs_between_seeds(make_run) -> None:
    found = settings(collect([make_run("a", 0), make_run("a", 1)])[0])
    assert found["samples"] == "samples/0, samples/1"
    assert found["loss"] == "kd, relation:1" and found["peak_rate"] == "0.4" and found["torch"] == "2.15.0"
    assert found["teacher weights"] == "f" * 12
    assert not {"out", "seed", "name"} & set(found)


def test_row__holds_seeds_whose_specialists_have_other_classes(make_run):
    def run(seed, groups, network="lenet5_half"):
        architecture = f"specialists:groups={groups},network={network},num_classes=10"
        student = {"architecture": architecture, "weights": "0" * 64, "run": "general"}
        options = {"specialists": 2, "seed": seed}
        return make_run("vote", seed, content={"student": student, "options": options}, begins="given")

    assert len(collect([run(0, "0+1 4+5"), run(1, "'1+2 4+5'")])[0].runs) == 2
    with pytest.raises(RequestError, match="differ in"):
        collect([run(2, "0+1"), run(3, "0+1", "lenet5")])


def test_row__holds_seeds_whose_mixing_is_learned_from_other_images(make_run):
    def run(seed, mixing, of="lenet5", name="three"):
        teacher = {"architecture": f"ensemble:mixing={mixing},of={of}", "weights": str(seed) * 64}
        return make_run(name, seed, config={"mixing": mixing}, content={"teacher": teacher})

    assert len(collect([run(0, "learned"), run(1, "learned")])[0].runs) == 2
    with pytest.raises(RequestError, match="differ in teacher"):
        collect([run(2, "learned"), run(3, "learned", "resnet18")])
    with pytest.raises(RequestError, match=r"differ in teacher\.weights"):
        collect([run(0, "entropy", name="mean"), run(1, "entropy", name="mean")])
