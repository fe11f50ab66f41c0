import pytest

from dfkd.config import DistillConfig, SelectConfig, tables
from dfkd.config.stage_table import STAGES
from dfkd.system.errors import RequestError


def test_from_mapping_types_hyphens_and_environment(monkeypatch):
    monkeypatch.setenv("POOLS", "/data")
    made = tables.from_mapping(
        SelectConfig, {"teacher": "t", "pool": "$POOLS/a.npz", "out": "o", "batch-size": 8, "gamma": 1}, "file"
    )
    assert made == SelectConfig(teacher="t", pool=("/data/a.npz",), out="o", batch_size=8, gamma=1.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"teacher": "t", "pool": ["p"]}, "file lacks out"),
        ({"teacher": "t", "pool": ["p"], "out": "o", "gama": 1}, "no option 'gama'; did you mean 'gamma'"),
        ({"teacher": "t", "pool": ["p"], "out": "o", "count": "many"}, "file: count='many' is not a whole number"),
        ({"teacher": "t", "pool": ["p"], "out": "o", "balance": "clas"}, "not one of none, class, cluster"),
    ],
)
def test_from_mapping_names_what_is_wrong(values, said):
    with pytest.raises(RequestError, match=said):
        tables.from_mapping(SelectConfig, values, "file")


def test_preset_file_shared_entries_and_own_table(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text(
        'normalize = "cifar10"\nloss = ["kd"]\nseed = 1\n[select]\ngamma = 0.4\nseed = 5\n[distill]\nsteps = 10\n'
    )
    assert tables.load_preset(str(preset), STAGES["select"]) == {"normalize": "cifar10", "seed": 5, "gamma": 0.4}
    assert tables.load_preset(str(preset), STAGES["distill"]) == {
        "normalize": "cifar10",
        "loss": ("kd",),
        "seed": 1,
        "steps": 10,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[distil]\nsteps = 1", "did you mean 'distill'"),
        ("stps = 1", "no option 'stps'"),
        ("[select]\nsteps = 1", r"\[select\] has no option 'steps'"),
        ("[select]\ncount = -5", r"mine.toml \[select\]: --count -5 is not at least 1"),
        ("[distill]\nlr = -1", r"mine.toml \[distill\]: --lr -1.0 is not at least 0"),
        ("count = -5", r"mine.toml: --count -5 is not at least 1"),
        ("not toml", "cannot be read"),
    ],
)
def test_preset_file_names_what_is_wrong(tmp_path, text, said):
    preset = tmp_path / "mine.toml"
    preset.write_text(text)
    with pytest.raises(RequestError, match=said):
        tables.load_preset(str(preset), STAGES["select"])


def test_file_that_is_not_there_is_told_without_numbers_and_twice_its_name(tmp_path):
    with pytest.raises(RequestError) as raised:
        tables.load_toml(tmp_path / "none.toml")
    assert str(raised.value) == f"{tmp_path / 'none.toml'} cannot be read: No such file or directory"


def test_every_preset_of_the_package_fits_its_stages():
    from importlib import resources

    names = [p.name.removesuffix(".toml") for p in (resources.files("dfkd.config") / "presets").iterdir()]
    assert names
    for name in names:
        assert tables.load_preset(name, STAGES["select"]) or tables.load_preset(name, STAGES["distill"])
    with pytest.raises(RequestError, match="did you mean"):
        tables.load_preset(names[0] + "x", STAGES["select"])


def test_differences_names_nested_fields():
    old = {"teacher": {"weights": "a"}, "seed": 0, "gone": 1}
    new = {"teacher": {"weights": "b"}, "seed": 0, "added": [1, 2]}
    assert tables.differences(old, new) == [
        "teacher.weights (a, now b)",
        "gone (1, now None)",
        "added (None, now 1,2)",
    ]
    assert tables.differences(new, dict(new)) == []


def test_describe__names_what_is_used_and_not_what_is_off():
    config = DistillConfig(teacher="t", student="s", samples=("a", "b"), out="o", ema=0.9)
    said = tables.describe(config).split()
    assert {"seed=0", "teacher=t", "samples=a,b", "ema=0.9"} <= {*said}
    assert not [word for word in said if word.startswith(("keep_weights", "shard_teacher", "graft", "test"))]


def test_an_option_that_is_written_in_two_ways_is_refused():
    with pytest.raises(RequestError, match=r"f\.toml has 'batch_size' twice"):
        tables.check_mapping(DistillConfig, {"batch-size": 4, "batch_size": 8}, "f.toml")
