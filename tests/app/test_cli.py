import io
import os
import re
import resource
import subprocess
import sys

import pytest

from dfkd import config
from dfkd.app import arguments, cli
from dfkd.config import option
from dfkd.config.stage_table import STAGES, Stage
from dfkd.system.errors import RequestError


def parsed(name, *given):
    return arguments.parse_arguments(STAGES[name], [str(a) for a in given])


SELECT = ("--teacher", "t", "--pool", "a", "b", "--out", "o")


def test_flags_beat_the_preset_which_beats_the_default(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text('teacher = "from-preset"\n[select]\ngamma = 0.2\ncount = 7\n')
    got = parsed("select", "--preset", preset, "--pool", "a", "--out", "o", "--count", 9)
    assert got == config.SelectConfig(
        preset=str(preset), teacher="from-preset", pool=("a",), out="o", gamma=0.2, count=9, seed=0
    )
    assert parsed("select", f"--preset={preset}", *SELECT).teacher == "t"


def test_an_option_of_several_values_is_not_given_twice_and_one_of_one_may_be():
    with pytest.raises(RequestError, match="--pool is given twice; give all its values after one: --pool A B"):
        parsed("select", *SELECT, "--pool", "c")
    with pytest.raises(RequestError, match="--teacher-taps is given twice"):
        parsed("select", *SELECT, "--teacher_taps", "last=a", "--teacher-taps=last=b")
    assert parsed("select", *SELECT, "--count", 1, "--count", 2).count == 2


def test_a_preset_that_has_nothing_for_the_command_says_so(tmp_path, capsys):
    assert parsed("select", "--preset", "quick", *SELECT).count is None
    assert "note: --preset quick changes nothing here: it has nothing for select" in capsys.readouterr().err
    parsed("distill", "--preset", "quick", "--teacher", "t", "--student", "s", "--samples", "d", "--out", "o")
    assert "note" not in capsys.readouterr().err


def test_a_length_in_one_unit_takes_the_place_of_the_presets_in_the_other(tmp_path):
    given = ("--teacher", "t", "--student", "s", "--samples", "d", "--out", "o")
    assert parsed("distill", "--preset", "quick", *given).steps == 1000
    got = parsed("distill", "--preset", "quick", "--epochs", 3, *given)
    assert (got.epochs, got.steps) == (3, None)
    (tmp_path / "p.toml").write_text("[distill]\nepochs = 2\n")
    got = parsed("distill", "--preset", tmp_path / "p.toml", "--steps=9", *given)
    assert (got.epochs, got.steps) == (None, 9)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_entry__ends_in_silence_when_its_output_is_no_longer_read(closed):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    command = [sys.executable, "-m", "dfkd", *(("--help",) if closed == "stdout" else ("no-command",))]
    try:
        ended = subprocess.run(command, **streams, timeout=60)
    finally:
        os.close(writer)
    assert ended.returncode == cli.UNREAD
    assert not ended.stdout and not ended.stderr


def test_several_values_and_positional_ones():
    assert parsed("select", *SELECT).pool == ("a", "b")
    assert parsed("compare", "r1", "r2", "--out", "x.html") == config.CompareConfig(runs=("r1", "r2"), out="x.html")
    assert parsed("inspect", "folder") == config.InspectConfig(folder="folder")
    assert not parsed("distill", "--teacher", "t", "--student", "s", "--samples", "d", "--out", "o", "--no-flip").flip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pool", "a"), "missing --teacher, --out (dfkd select --help lists the options)"),
        ((*SELECT, "--count", "many"), "--count: 'many' is not a whole number (dfkd select --help lists the options)"),
        ((*SELECT, "--gamma", "x"), "--gamma: 'x' is not a number (dfkd select --help lists the options)"),
        (("--teacher", "t", "--out", "o", "--pool"), "--pool needs at least one value"),
        ((*SELECT, "--count"), "--count needs a value (dfkd select --help lists the options)"),
        ((*SELECT, "--balance", "even"), "--balance: invalid choice 'even'; it is one of none, class, cluster"),
        ((*SELECT, "-x"), "'-x' belongs to no option (dfkd"),
        ((*SELECT, "--count", "5", "6", "7"), "'6' belongs to no option: --count takes one value (dfkd select --help"),
        (("--gama", "1"), "there is no option '--gama'; did you mean '--gamma'?"),
        ((*SELECT, "--gama", "1"), "there is no option '--gama'; did you mean '--gamma'?"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_the_parser_refuses_is_one_line(arguments, said, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(RequestError, match=re.escape(said)):
        parsed("select", *arguments)


def test_help_is_quick_and_imports_nothing_heavy():
    """Half a second is promised. Of the processor: what else it does meanwhile is not ours."""

    def used():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    for line in (["--help"], ["select", "--help"], ["compare", "--help"]):
        code = (
            "import sys; from dfkd.app import cli; status = cli.main(sys.argv[1:]);"
            "heavy = {'torch', 'numpy', 'datasets', 'pyarrow', 'faiss', 'PIL'} & set(sys.modules);"
            "print(sorted(heavy), file=sys.stderr); sys.exit(status)"
        )
        seconds = []
        for _ in range(3):
            before = used()
            done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True)
            seconds.append(used() - before)
            assert (done.returncode, done.stderr) == (0, "[]\n")
            assert "usage: dfkd" in done.stdout
        assert min(seconds) < 0.5


def test_parse_arguments__takes_what_names_no_option_as_a_value():
    """Values that begin as a number below zero, that are spelled as an option, and a list before a positional."""
    assert parsed("select", *SELECT, "--normalize=-1/2").normalize == "-1/2"
    got = parsed(
        "distill", "--preset", "quick", "--teacher", "t", "--student", "s", "--samples", "d", "--out", "epochs"
    )
    assert (got.out, got.steps) == ("epochs", 1000)
    assert parsed("compare", "--out", "x.html", "r1", "r2").runs == ("r1", "r2")
    assert parsed("run", "f.toml", "--only", "a", "b").only == ("a", "b")
    assert parsed("select", *SELECT, "--count", "None").count is None


@pytest.mark.parametrize("name", STAGES)
def test_help__has_the_required_options_first_then_sections_then_an_example(name, capsys):
    """And no spelling that only a programmer reads."""
    assert cli.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: dfkd {name} ")
    assert "None" not in said
    titles = re.findall(r"^([a-z ]+):$", said, re.MULTILINE)
    assert titles[-1] == "example" and ("required" not in titles or titles[0] == "required")
    assert f"  dfkd {name}" in said.rpartition("example:")[2]
    for flag in option.field_hints(STAGES[name].options):
        assert flag.replace("_", "-") in said or flag.upper() in said or flag.upper().rstrip("S") in said


def positional(name):
    return [key for key, declared in option.options(STAGES[name].options).items() if declared.positional]


def test_the_flags_that_scripts_rely_on():
    """Extend freely, keep what is written."""
    flags = {name: set(option.field_hints(stage.options)) for name, stage in STAGES.items()}
    model = {"normalize", "image_size", "device", "seed", "preset"}
    assert flags["select"] >= model | {"teacher", "pool", "out", "method", "count", "gamma"}
    assert flags["distill"] >= model | {
        *("teacher", "student", "samples", "out", "epochs", "steps", "test"),
        *("loss", "batch_size", "lr", "checkpoint_every"),
    }
    assert flags["evaluate"] >= model | {"model", "data", "json"}
    assert positional("inspect") == ["folder"]
    assert flags["inspect"] >= {"folder", "out", "verify"}
    assert positional("compare") == ["runs"]
    assert flags["compare"] >= {"runs", "out"}
    assert positional("run") == ["file"]
    assert flags["demo"] >= {"out"}
    assert flags["export"] >= {"model", "format", "out", "normalize", "image_size"}


def test_a_defect_of_ours_is_a_traceback_and_not_a_wrong_request():
    broken = Stage("inspect", config.InspectConfig, "dfkd.system.versions:versions")
    with pytest.raises(Exception, match="InspectConfig"):
        cli.main(["inspect", "x"], {"inspect": broken})
