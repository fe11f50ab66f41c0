"""Labelled data whose classes have names: folders, and tables."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.data import open_pool
from dfkd.models import cifar_resnet
from dfkd.system.errors import RequestError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
ALL = np.arange(12)


@pytest.mark.parametrize(
    ("folders", "status", "said"),
    [
        (["train", "val"], 2, "look like splits"),
        (["Training_set", "test2017", "extra"], 2, "look like splits"),
        (["test"], 2, "look like splits"),
        (["train", "tram", "valley"], 2, "has 3 named classes ('train', 'tram', 'valley') and the model 4; give"),
        (["a", "b", "c", "d", "e"], 2, "has 5 named classes ('a', 'b', 'c', 'd', ...) and the model 4; give"),
        (["train", "val", "dog", "cat"], 0, "look like splits"),
        (["tram", "valley", "dog", "cat"], 0, "top-1"),
        (["1", "2", "3", "4"], 2, "labels from 1 to 4; the model has classes 0 to 3; count them from 0"),
        (["3", "1"], 0, "images of 2 of the model's 4 classes"),
    ],
)
def test_evaluate__says_what_class_folders_stand_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str], status: int, said: str
) -> None:
    """Class folders that are splits, that count from 1, and that hold some of the model's classes."""
    save_file(cifar_resnet(depth=8, width=4, num_classes=4).state_dict(), tmp_path / "t.safetensors")
    for i, folder in enumerate(folders):
        (tmp_path / "d" / folder).mkdir(parents=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "d" / folder / "a.png")
    model = f"cifar_resnet:depth=8,width=4@{tmp_path / 't.safetensors'}"
    given = ("--model", model, "--image-size", "32", "--data", str(tmp_path / "d"))
    assert cli.main(["evaluate", *given]) == status
    shown = capsys.readouterr().err
    assert said in shown and ("splits" in said) == ("splits" in shown)


LISTS = {
    "lines.txt": "\ufeffcat\r\nbig dog\r\n\r\npanda\r\nyak\r\n",
    "synsets.txt": "n02123045 cat, tabby\nn02085620 big dog, hound\nn02510455 panda\nn02403003 yak\n",
    "unordered.txt": "3: yak\n1: big dog\n2: panda\n0: cat\n",
    "map.txt": "cat 0\nbig dog 1\npanda 2\nyak 3\n",
    "list.json": '["cat", "big dog", "panda", "yak"]',
    "index.json": '{"0": ["n02123045", "cat"], "1": ["n02085620", "big dog"], "2": ["n02510455", "panda"], "3": "yak"}',
    "to_index.json": '{"cat": 0, "yak": 3, "big dog": 1, "panda": 2}',
    "config.json": '{"id2label": {"0": "cat", "1": "big dog", "2": "panda", "3": "yak"}, "num_labels": 4}',
}
"""The names of four classes as people keep them."""


@pytest.mark.parametrize("file", LISTS)
def test_open_pool__finds_class_folders_by_name(tmp_path: Path, file: str) -> None:
    """Class folders that are some of the model's classes, and lists of these in every form."""
    (tmp_path / file).write_text(LISTS[file], "utf-8")
    for i, folder in enumerate(["yak", "Big_Dog"]):
        (tmp_path / "d" / folder).mkdir(parents=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "d" / folder / "a.png")
    pool = open_pool([str(tmp_path / "d")], image_size=16, channels=3, classes=str(tmp_path / file))
    assert dict(zip(pool.origins(ALL[:2]), pool.labels(4).tolist(), strict=True)) == {
        "d/yak/a.png": 3,
        "d/Big_Dog/a.png": 1,
    }
    plain = open_pool([str(tmp_path / "d")], image_size=16, channels=3)
    assert plain.identity != pool.identity
    if "n02085620" in LISTS[file]:
        (tmp_path / "d" / "yak").rename(tmp_path / "d" / "n02510455")
        pool = open_pool([str(tmp_path / "d")], image_size=16, channels=3, classes=str(tmp_path / file))
        assert pool.labels(4).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("own", "labels", "said"),
    [
        (("c", "a", "b"), [1, 2, 0], ""),
        (("a", "b", "c"), [0, 1, 2], ""),
        (("c", "a", "b", "d"), [1, 2, 0], ""),  # the data alone has no order
        (("c", "a", "x"), [0, 1, 2], "do not identify 'b', so the class folders of 'd' count in sorted order"),
        (("c", "a", "a"), [0, 1, 2], "do not identify 'a'"),
    ],
)
def test_open_pool__finds_class_folders_by_the_names_that_a_model_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own: tuple[str, ...], labels: list[int], said: str
) -> None:
    """The names decide, and are part of the identity, only where they include all folders and change the labels."""
    for i, folder in enumerate("abc"):
        (tmp_path / "d" / folder).mkdir(parents=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "d" / folder / "a.png")
    plain = open_pool([str(tmp_path / "d")], image_size=16, channels=3)
    pool = open_pool([str(tmp_path / "d")], image_size=16, channels=3, own_names=own)
    assert pool.labels(len(own)).tolist() == labels
    shown = capsys.readouterr().err
    assert said in shown and bool(said) == ("note" in shown)
    assert (pool.identity == plain.identity) == (labels == [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("cat\ndog\ncow\nyak", "lists no class 'panda' of 'd'; there are cat, cow, dog, yak"),
        ("panda\npanda\ncow\nyak", "gives the name 'panda', of 'd', to classes 0 and 1; give each"),
        ("panda\ncow", "lists 2 classes, and the model has 4"),
        ("", "lists no classes: it holds one class a line"),
        ("{broken", "lists no classes"),
        ('{"a": "b"}', "lists no classes"),
        ('["a", 1]', "lists no classes"),
    ],
)
def test_class_names__refuses_what_names_no_class(tmp_path: Path, content: str, said: str) -> None:
    """Lists of other classes, of names that stand twice, and files that are no lists."""
    (tmp_path / "c").write_text(content)
    (tmp_path / "d" / "panda").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(tmp_path / "d" / "panda" / "a.png")
    with pytest.raises(RequestError, match=re.escape(said)):
        open_pool([str(tmp_path / "d")], image_size=16, channels=3, classes=str(tmp_path / "c")).labels(4)


def test_open_pool__finds_the_names_of_a_table(tmp_path: Path) -> None:
    """Tables whose labels are words, or numbers of names that the table's metadata lists."""
    (tmp_path / "c.txt").write_text(LISTS["lines.txt"])
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    cells = pa.array([(tmp_path / "a.png").read_bytes()] * 3, pa.binary())
    words = pa.table({"image": cells, "label": ["yak", "cat", "yak"]})
    about = {"info": {"features": {"label": {"names": ["panda", "yak"], "_type": "ClassLabel"}}}}
    numbers = pa.table({"image": cells, "label": [1, 0, 1]}).replace_schema_metadata({"huggingface": json.dumps(about)})
    for table, labels in ((words, [3, 0, 3]), (numbers, [3, 2, 3])):
        pq.write_table(table, tmp_path / "x.parquet")
        pool = open_pool([str(tmp_path / "x.parquet")], image_size=16, channels=3, classes=str(tmp_path / "c.txt"))
        assert pool.labels(4).tolist() == labels
        own = open_pool(
            [str(tmp_path / "x.parquet")], image_size=16, channels=3, own_names=("cat", "big dog", "panda", "yak")
        )
        assert own.labels(4).tolist() == labels


def test_commands__take_the_names_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A labelled folder with some of the model's classes, for `evaluate` and for `distill --test`."""
    torch.manual_seed(0)
    network = cifar_resnet(depth=8, width=4, num_classes=4).eval()
    save_file(network.state_dict(), tmp_path / "t.safetensors")
    pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    answers = network(pixels).argmax(1).tolist()
    for i, answer in enumerate(answers):
        folder = tmp_path / "d" / ["cat", "big dog", "panda", "yak"][answer]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i]).save(folder / f"{i}.png")
    (tmp_path / "d" / "empty").mkdir()
    (tmp_path / "c.txt").write_text(LISTS["synsets.txt"])
    np.savez(tmp_path / "pool.npz", images=PIXELS)
    model, classes = (
        f"cifar_resnet:depth=8,width=4@{tmp_path / 't.safetensors'}",
        ["--classes", str(tmp_path / "c.txt")],
    )
    given = ["--image-size", "16", "--normalize", "none"]
    evaluate = ["evaluate", "--model", model, "--data", str(tmp_path / "d"), *given]
    assert cli.main([*evaluate, *classes]) == 0
    assert "top1: 1.0000" in capsys.readouterr().out
    assert cli.main([*evaluate, *classes, "--json", str(tmp_path / "c.txt")]) == 2
    pool = ["--pool", str(tmp_path / "pool.npz"), "--count", "4", "--out", str(tmp_path / "s")]
    assert cli.main(["select", "--teacher", model, *pool, *given]) == 0
    distill = ["distill", "--teacher", model, "--student", "cifar_resnet:depth=8,width=4", "--loss", "kd"]
    distill += ["--samples", str(tmp_path / "s"), "--steps", "1", "--batch-size", "4", "--out", str(tmp_path / "r")]
    assert cli.main([*distill, "--test", str(tmp_path / "d")]) == 2
    assert cli.main([*distill, "--test", str(tmp_path / "d"), *classes]) == 0
    assert json.loads((tmp_path / "r" / "result.json").read_text())["teacher_top1"] == 1.0
    capsys.readouterr()  # the run knows its classes, and the images that it was tested on
    for names in ([], classes):
        assert cli.main(["evaluate", "--model", str(tmp_path / "r"), "--data", str(tmp_path / "d"), *names]) == 0
    assert len({line for line in capsys.readouterr().out.splitlines() if line.startswith("per_class")}) == 1
    assert cli.main(["explain", "--model", str(tmp_path / "r"), "--out", str(tmp_path / "p.html")]) == 0
    assert "teacher's accuracy: 100.00%" in capsys.readouterr().out
