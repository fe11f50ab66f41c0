"""What a command line says of an option."""

from typing import Literal

import pytest

from dfkd.app.cli import main
from dfkd.config.stage_table import STAGES
from dfkd.config.texts import metavar


@pytest.mark.parametrize(
    ("kind", "reads", "help", "said"),
    [
        (str, "model", "The student.", "MODEL"),
        (str, "selection", "Selections.", "FOLDER"),
        (str, None, "FILE.html with a gallery.", "FILE"),
        (str, None, "Folder of the run.", "FOLDER"),
        (str, None, "Folders of runs.", "TEXT"),
        (int, None, "FILE", "INT"),
        (Literal["a", "b"], None, "Kind.", "{a,b}"),
    ],
)
def test_metavar__says_what_a_value_is(kind, reads, help, said):
    assert metavar(kind, reads, help) == said


def test_help__names_values_and_not_their_types(capsys):
    for name in STAGES:
        assert main([name, "--help"]) == 0
        assert " STR" not in capsys.readouterr().out
