import csv
import io

import pytest

from dfkd.report.collect import collect
from dfkd.report.table import HEAD, cells, csv_text, markdown_table, read_csv, reading, terminal_table, warnings


def test_cells(make_run) -> None:
    folders = [make_run("a", s, top1=t, agreement=t, seconds=sec) for s, t, sec in ((0, 0.7, 4.0), (1, 0.8, 8.0))]
    (row,) = collect(folders)
    # deviation of 70 and 80: sqrt(50) = 7.07; the teacher's 95 less 75; 12,800 images in 4 s and in 8 s
    expected = ["a", "2", "75.00 ± 7.07", "75.00 ± 7.07", "-20.00", "100", "6", "12,800", "0", "2,400", "1,234"]
    expected.append("selection")
    assert dict(zip(HEAD, cells(row), strict=True)) == dict(zip(HEAD, expected, strict=True))


def test_cells_of_a_single_untested_run(make_run) -> None:
    (row,) = collect([make_run("a", top1=None, agreement=None, teacher_top1=None, test_images=None, seconds=0.0)])
    assert cells(row)[1:7] == ["1", "-", "-", "-", "100", "0"] and cells(row)[9] == "-"


def test_markdown_table__keeps_pipes_of_names_in_their_cells(make_run) -> None:
    lines = markdown_table(collect([make_run("random | kd", top1=0.7), make_run("b", top1=0.6)])).splitlines()
    assert lines[0].startswith("| name | seeds | top-1 % | agreement % |")
    assert lines[1].startswith("| --- | ---: |")
    assert lines[2].startswith("| random \\| kd | 1 | 70.00 |") and lines[3].startswith("| b | 1 | 60.00 |")
    assert lines[5] == "in all rows: steps 100, teacher forwards 12,800, student parameters 1,234, source selection"


def test_generator_steps_are_shown_where_there_are_any(make_run) -> None:
    assert "generator steps" not in terminal_table(collect([make_run("a"), make_run("b", generator_steps=0)]))
    text = terminal_table(collect([make_run("c", generator_steps=0), make_run("d", generator_steps=400)]))
    assert "generator steps" in text.splitlines()[0] and " 400 " in text
    assert "400" in csv_text(collect([make_run("e", generator_steps=400)]))


def test_terminal_table_says_equal_costs_once(make_run) -> None:
    rows = collect([make_run("a", top1=0.9), make_run("b", top1=0.8, steps=50)])
    text = terminal_table(rows)
    assert text.splitlines()[-1] == "in all rows: teacher forwards 12,800, student parameters 1,234, source selection"
    assert [line.split()[:3] for line in text.splitlines()[1:3]] == [["a", "1", "90.00"], ["b", "1", "80.00"]]
    assert "steps" in text.splitlines()[0] and "source" not in text.splitlines()[0]
    assert "source" in terminal_table(rows[:1])


@pytest.mark.parametrize(
    ("best", "second", "says"),
    [
        (
            (0.90, 0.92),
            (0.80, 0.82),
            "a is best: 91.00 % over 81.00 % (b) by 10.00 points, which is more than the seeds'",
        ),
        (
            (0.90, 0.92),
            (0.80, 0.96),
            "a (91.00 %) and b (88.00 %) are level: 3.00 points apart, which is no more than the seeds' spread (11",
        ),
        ((0.90, 0.92), (0.80,), "by 11.00 points, but a row with a single seed does not say how far seeds are apart."),
        ((0.90, 0.92), (), "a reaches 91.00 ± 1.41 %, 4.00 points below its teacher."),
    ],
)
def test_reading(make_run, best: tuple[float, ...], second: tuple[float, ...], says: str) -> None:
    folders = [make_run(name, s, top1=t) for name, row in (("a", best), ("b", second)) for s, t in enumerate(row)]
    assert says in reading(collect(folders))


def test_terminal_table__names_the_columns_that_do_not_fit(make_run) -> None:
    rows = collect([make_run(name, top1=0.5) for name in ("a", "b")])
    whole = terminal_table(rows)
    table, more = terminal_table(rows, 40).splitlines()[:3], terminal_table(rows, 40).splitlines()[3]
    assert max(map(len, table)) <= 40 and all(map(str.startswith, whole.splitlines(), table))
    head = whole.splitlines()[0]
    assert more.startswith("more in the page: ") and more.endswith(head.split("  ")[-1].strip())
    assert terminal_table(rows, len(head)) == whole


def test_reading_without_a_test(make_run) -> None:
    assert reading(collect([make_run("a", top1=None)])).startswith("No run was tested")


def test_equal_rows_with_seeds_have_no_warning(make_run) -> None:
    assert warnings(collect([make_run(name, s) for name in "ab" for s in (0, 1)])) == []


@pytest.mark.parametrize(
    ("different", "says"),
    [
        ({"steps": 50}, "not compared at equal optimizer steps: 100 (a); 50 (b)"),
        ({"images_seen": 6400}, "not compared at equal numbers of images seen: 12,800 (a); 6,400 (b)"),
        ({"test_images": 10}, "tested on different numbers of images: 1,000 (a); 10 (b)"),
        ({"teacher_top1": 0.9}, "one teacher with different accuracies, so the test images differ: 95.0000% (a)"),
        ({"student_parameters": 99}, "students of different size: 1,234 (a); 99 (b)"),
        (
            {"begins": "teacher"},
            "students that begin differently: random weights (a); the teacher's layers (b)",
        ),
        (
            {"content": {"compute": {"device": "cpu", "precision": "bfloat16"}}},
            "trained in different precision: float32 (a); bfloat16 (b)",
        ),
        (
            {"begins": "given", "content": {"student": {"architecture": "lenet5_half", "weights": "0"}}},
            "students that begin differently: random weights (a); weights of their own (b)",
        ),
        (
            {"content": {"teacher": {"architecture": "vgg", "weights": "e" * 64}}, "teacher_top1": 0.9},
            "taught by different teachers: lenet5 ffffffff (a); vgg eeeeeeee (b)",
        ),
    ],
)
def test_each_unfair_difference_is_one_warning(make_run, different: dict, says: str) -> None:
    rows = collect(
        [make_run("a", s) for s in (0, 1)] + [make_run("b", s, **({"top1": 0.1} | different)) for s in (0, 1)]
    )
    (warning,) = warnings(rows)
    assert warning.startswith(says)


def test_where_no_run_was_tested_the_reading_says_so_and_no_warning(make_run) -> None:
    assert warnings(collect([make_run(name, s, top1=None) for name in "ab" for s in (0, 1)])) == []


def test_single_seeds_and_untested_runs_are_named(make_run) -> None:
    rows = collect([make_run("a"), make_run("b", 0, top1=0.1), make_run("b", 1, top1=None)])
    assert warnings(rows) == ["not every run was tested: b", "one seed: a difference may be noise (a)"]


def test_csv_has_a_line_a_run_with_every_single_value(make_run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = [make_run('a,"b', 0, top1=0.123456789, extra=7), make_run("c", 1, top1=None)]
    lines = list(csv.DictReader(io.StringIO(csv_text(collect(folders)))))
    assert list(lines[0])[:3] == ["name", "seed", "folder"] and "per_class" not in lines[0]
    assert (lines[0]["name"], lines[0]["top1"], lines[0]["extra"]) == ('a,"b', "0.123456789", "7")
    assert (lines[1]["seed"], lines[1]["top1"], lines[1]["extra"]) == ("1", "", "")
    assert lines[0]["folder"] == "~/runs/0"


def test_a_csv_read_again_gives_the_same_cells(make_run) -> None:
    folders = [make_run("a", s, top1=0.5 + s / 10) for s in (0, 1)] + [
        make_run("123", top1=0.7, generator_steps=400),
        make_run("c", top1=None),
    ]
    rows = collect(folders)
    read = read_csv(csv_text(rows))
    assert [row.name for row in read] == ["123", "a", "c"]
    assert [cells(row) for row in read] == [cells(row) for row in rows]
