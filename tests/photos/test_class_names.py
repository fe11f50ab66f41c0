"""Names of classes in what is printed, and in the files that are MODELs."""

from dfkd.models.load import load_model
from dfkd.system.text import of_classes

NAMES = ("ant", "bee", "cat", "dog", "elk")


def test_of_classes__names_few_classes_and_the_extremes_of_many():
    assert of_classes([1, None], "f", names=("ant", "bee")) == "ant 1, bee None"
    many = of_classes(list(range(30)), "f.json", names=[f"kind {k}" for k in range(30)])
    assert "least 0 (kind 0), 1 (kind 1)" in many and "most 29 (kind 29)" in many


def test_run__keeps_the_names_of_its_classes(studio, selection, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(f"kind {k}, {name}" for k, name in enumerate(NAMES)))
    run, classes = tmp_path / "run", ("--classes", tmp_path / "names.txt")
    assert studio.distill(selection, run, "--test", studio.photos, *classes) == 0
    assert load_model(str(run)).class_names == tuple(f"kind {k}, {name}" for k, name in enumerate(NAMES))
    capsys.readouterr()
    assert studio.dfkd("evaluate", "--model", run, "--data", studio.photos) == 0
    assert "per_class: kind 0, ant " in capsys.readouterr().out
