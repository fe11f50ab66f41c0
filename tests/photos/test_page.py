"""The commands of docs/photos.md, one after the other as they stand there, on small images and with small networks."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from dfkd.models import cifar_resnet

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "photos.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
OWN = "from dfkd.models import cifar_resnet\n\ndef make_net():\n    return cifar_resnet(8, width=4, num_classes=5)\n"
SMALL = {
    "224": "72",
    "2000": "2",
    # a stand-in for public weights: of another class count
    "mobilenet_v3_small:weights=DEFAULT": "cifar_resnet:depth=8,width=2@public.pt",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporters
def test_photos_page__commands_work_in_turn(studio, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_nets.py").write_text(OWN)
    (tmp_path / "names.txt").write_text("\n".join(f"kind {k}" for k in range(5)))
    (tmp_path / "teacher.pt").symlink_to(studio.folder / "teacher.pt")
    for name in ("photos", "labeled"):
        (tmp_path / name).symlink_to(studio.photos)
    torch.save(cifar_resnet(8, width=2, num_classes=7).state_dict(), tmp_path / "public.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    assert [command.split()[1] for command in COMMANDS[:4]] == ["evaluate", "select", "inspect", "distill"]
    for command in COMMANDS:
        words = [SMALL.get(word, word) for word in shlex.split(command)[1:]]
        assert studio.dfkd(*words, *(("--batch-size", 4) if words[0] == "distill" else ())) == 0, command
    said = capsys.readouterr()
    assert "linear is new, with 5 classes" in said.err
    assert said.err.count("checked with") == 3
    assert "normalization none, as its file says" in said.err
    sys.modules.pop("my_nets", None)
