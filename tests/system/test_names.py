import sys

import pytest

from dfkd.system import names
from dfkd.system.errors import RequestError, nearest
from dfkd.system.names import Named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kd", Named("kd")),
        ("kd:2", Named("kd", {}, (2.0,))),
        ("kd:2,temperature=4", Named("kd", {"temperature": 4}, (2.0,))),
        (
            "a.b.C:x=(1, 2),y=true,z=none,w=vit_tiny",
            Named("a.b.C", {"x": (1, 2), "y": True, "z": None, "w": "vit_tiny"}),
        ),
        ("m:q='a,b'", Named("m", {"q": "a,b"})),
    ],
)
def test_parse(text, expected):
    assert names.parse(text) == expected


@pytest.mark.parametrize("text", ["kd", "kd:0.5,temperature=4", "cifar_resnet:depth=20,width=32"])
def test_text_round_trip(text):
    assert str(names.parse(text)) == text


def test_text_round_trip__of_names_within_names():
    """A run of a pruned network that was quantized, as the student of a run with specialists."""
    named = Named("cifar_resnet", {"depth": 8, "width": 8})
    for _ in range(5):
        named = Named("pruned", {"network": str(named), "widths": "conv1=5x1 bn1=5", "channels": 1})
        assert names.parse(str(named)) == named


@pytest.mark.parametrize("value", ["o'brien", 'a"b', "a(b", "a]b", "a\\", "'a\\", 'it\'s "so", is it'])
def test_text_round_trip__of_open_quotes_and_brackets(value):
    named = Named("m", {"a": value, "b": 1})
    assert names.parse(str(named)) == named


@pytest.mark.parametrize("text", ["", ":depth=1", "kd:", "kd:x", "kd:a=1,a=2", "kd:1a=2"])
def test_parse_refuses(text):
    with pytest.raises(RequestError):
        names.parse(text)


def test_find_looks_in_modules_exactly_then_by_case():
    from dfkd.distill.losses import KD

    assert names.find("kd", ["dfkd.distill.losses"], "loss") is KD
    assert names.find("KD", ["dfkd.distill.losses"], "loss") is KD
    with pytest.raises(RequestError, match="did you mean 'relation'"):
        names.find("relaton", ["dfkd.distill.losses"], "loss")


def test_find_imports_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text("def make(x: int = 1):\n    return x\n\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert names.find("my_own_nets.make", [], "model")() == 1
    with pytest.raises(RequestError, match="did you mean 'make'"):
        names.find("my_own_nets.mke", [], "model")
    with pytest.raises(RequestError, match="not a class or function"):
        names.find("my_own_nets.number", [], "model")
    with pytest.raises(RequestError, match=r"there is no module 'no_such_package'$"):
        names.find("no_such_package.make", [], "model")
    with pytest.raises(RequestError, match="there is no module 'my_own_net'; did you mean 'my_own_nets'"):
        names.find("my_own_net.make", [], "model")


def test_nearest__says_is_of_one_name():
    assert nearest("weights", ["a"]) == "; there is a" and nearest("weights", ["b", "a"]) == "; there are a, b"


def test_find__lists_the_functions_of_a_module_that_lists_none():
    """torchvision.models also has classes of networks and of weights, which no text names."""
    with pytest.raises(RequestError, match=r"there are alexnet, \w+, (?!.*Weights)"):
        names.find("Plain", ["torchvision.models"], "model")
    assert names.find("ResNet", ["torchvision.models"], "model").__name__ == "ResNet"
