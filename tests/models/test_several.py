"""From `--teacher A B` and a file of teachers to one classifier."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dfkd
from dfkd.config.stages.shared import Input
from dfkd.models import cifar_resnet
from dfkd.models.ensemble import Ensemble
from dfkd.models.load import load_trained
from dfkd.models.own import OneTeacher, OwnNetwork, Several
from dfkd.models.several import given_teacher, load_classifier
from dfkd.system.errors import RequestError

NET = "cifar_resnet:depth=8,width=4,num_classes=4"


class Net(nn.Module):
    """A small network of any size of image."""

    def __init__(self, classes=3, channels=3):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean(dim=(2, 3)))


def net(seed, classes=3, channels=3):
    torch.manual_seed(seed)
    return Net(classes, channels).eval()


def several(*teachers, mixing=None):
    made = [OneTeacher(OwnNetwork(one)) if isinstance(one, nn.Module) else one for one in teachers]
    return Several(tuple(made), mixing)


def load(given, **more):
    return load_classifier(given, Input(image_size=16), **more)


def of(network, **more):
    return OneTeacher(OwnNetwork(network), **more)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Two small teachers of one architecture as files, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_file(cifar_resnet(depth=8, width=4, num_classes=4).state_dict(), f"{name}.safetensors")
    return f"{NET}@a.safetensors", f"{NET}@b.safetensors"


def test_given_teacher__is_one_model_or_several(weights, capsys):
    assert given_teacher("a", None) == given_teacher(("a",), None) == "a"
    assert given_teacher(("a", "b"), "entropy") == Several((OneTeacher("a"), OneTeacher("b")), "entropy")
    assert given_teacher("a", "entropy") == "a" and "changes nothing" in capsys.readouterr().err


def test_file__of_several_teachers_is_no_teacher_beside_others(weights, tmp_path):
    (tmp_path / "both.toml").write_text("".join(f'[[teacher]]\nmodel = "{text}"\n' for text in weights))
    with pytest.raises(RequestError, match=r"--teacher: both.toml names several teachers itself; name it alone"):
        load(given_teacher((weights[0], "both.toml"), None))


def test_classifier__takes_what_the_first_one_takes_and_says_the_mean(weights):
    both = load_classifier(given_teacher(weights, None), Input("0.5/0.25"))
    ones = [load_trained(text, Input("0.5/0.25")) for text in weights]
    images = torch.rand(2, ones[0].channels, 32, 32)
    expected = (ones[0].module(images) + ones[1].module(images)) / 2
    assert torch.allclose(both.module(images), expected, atol=1e-5)
    assert (both.normalize, both.classes, both.image_size) == ("0.5/0.25", 4, 32)
    assert both.spec == " + ".join(one.spec for one in ones)
    assert both.parameter_count() == sum(one.parameter_count() for one in ones)


def test_fingerprint__holds_all_that_decides_the_answer(weights):
    prints = [load(given_teacher(weights, mixing)).fingerprint() for mixing in (None, "entropy")]
    prints += [load(given_teacher(weights[::-1], None)).fingerprint()]
    names = ("a", "b", "c", "d")
    others = [{}, {"classes": ("b", "a", "c", "d")}, {"weight": 2.0}, {"class_weights": {"a": 2.0}}]
    others += [{"normalize": "none"}, {"image_size": 24}, {"other": "b"}]
    for more in others:
        named = [OneTeacher(text, **{"classes": names, **own}) for text, own in zip(weights, ({}, more), strict=True)]
        prints.append(load(several(*named)).fingerprint())
    first = prints.pop(0)
    assert first == load(given_teacher(weights, "mean-logits")).fingerprint()
    assert len({str(sorted(one.items())) for one in prints}) == len(prints)
    assert [one == first for one in prints] == [False, False, True, *[False] * 6]  # names alone change no answer


def test_normalization__of_another_teacher_is_its_own_or_the_first_ones(tmp_path):
    timm = net(1)
    timm.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    images = torch.rand(2, 3, 16, 16)
    for normalize in (None, "none"):
        given = several(net(0), timm, of(net(2)), of(net(3), normalize="0.5/0.5"))
        mixed = load_classifier(given, Input(normalize, 16))
        first = load_trained(OwnNetwork(net(0)), Input(normalize, 16))
        assert mixed.normalize == first.normalize == (normalize or "imagenet")
        mean = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
        view = mixed.preprocess.normalized(images)
        parts = [net(0)(view), timm((images - mean) / 0.5), net(2)(view), net(3)((images - 0.5) / 0.5)]
        assert torch.allclose(mixed.module(view), torch.stack(parts).mean(0), atol=1e-5)
    # what a selection stores of the first one's leads to the same teacher
    again = load_classifier(given, Input(mixed.normalize, 16))
    assert again.fingerprint() == mixed.fingerprint()


@pytest.mark.parametrize(("size", "expected"), [(16, None), (224, 32)])
def test_size__of_a_network_for_small_images_is_that_of_the_images_while_they_are_small(weights, size, expected):
    mixed = load_classifier(several(net(0, 4), OneTeacher(weights[0])), Input(image_size=size))
    assert isinstance(mixed.module, Ensemble) and mixed.module._sizes == [None, expected]
    told = several(net(0, 4), OneTeacher(weights[0], image_size=24))
    assert load_classifier(told, Input(image_size=size)).module._sizes == [None, 24]


def test_classes__of_different_sets_are_united_in_order():
    one, two = of(net(0, 2), classes=("cat", "dog")), of(net(1, 3), classes=("dog", "ship", "bird"))
    mixed = load(several(one, two))
    assert mixed.class_names == ("cat", "dog", "ship", "bird") and mixed.classes == 4
    images = torch.rand(2, 3, 16, 16)
    first, second = (x - x.mean(1, keepdim=True) for x in (net(0, 2)(images), net(1, 3)(images)))
    expected = torch.stack([first[:, 0], (first[:, 1] + second[:, 0]) / 2, second[:, 1], second[:, 2]], dim=1)
    assert torch.allclose(mixed.module(images), expected, atol=1e-5)


def test_classes__without_names_are_taken_for_the_same(capsys):
    mixed = load(several(net(0), net(1)))
    assert mixed.class_names == () and mixed.classes == 3
    named = load(several(net(0), of(net(1), classes=("a", "b", "c"))))
    assert named.class_names == ("a", "b", "c")
    assert "nothing names the classes of Net" in capsys.readouterr().err


def test_classes__that_none_share_are_noted_where_shares_say_nothing(capsys):
    one, two = of(net(0, 2), classes=("a", "b")), of(net(1, 2), classes=("c", "d"))
    load(several(one, two, mixing="mean-probabilities"))
    assert "no class in common" in capsys.readouterr().err
    load(several(one, two))
    load(several(one, two, of(net(2, 2), classes=("b", "c")), mixing="mean-probabilities"))
    assert "no class in common" not in capsys.readouterr().err


def test_file__of_teachers_is_a_model(weights, capsys):
    Path("names.txt").write_text("a\nb\nc\nd\n")
    first = f'model = "{NET}@a.safetensors"\nclasses = "names.txt"\nnormalize = "none"\n'
    second = f'model = "{NET}@b.safetensors"\nclasses = ["d", "e", "f", "o"]\nother = "o"\n'
    more = "weight = 2\nclass_weights = {e = 3}\nimage_size = 24\n"
    text = f'mixing = "entropy"\n[[teacher]]\n{first}[[teacher]]\n{second}{more}'
    Path("teachers.toml").write_text(text)
    mixed = load_classifier("teachers.toml")
    assert mixed.class_names == ("a", "b", "c", "d", "e", "f") and mixed.normalize == "none"
    module = mixed.module
    assert isinstance(module, Ensemble) and module.mixing == "entropy" and module._sizes == [None, 24]
    assert module.weights.tolist() == [[1, 1, 1, 1, 0, 0], [0, 0, 0, 2, 6, 2]] and module.rest.tolist() == [0, 2]
    other = given_teacher("teachers.toml", "mean-logits")
    assert isinstance(other, Several) and other.mixing == "mean-logits"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write two or more \\[\\[teacher\\]\\] tables"),
        ('[[teacher]]\nmodel = "lenet5"', "write two or more"),
        ('mixin = "entropy"', "has 'mixin'; did you mean 'mixing'"),
        ('mixing = "sum"\n[[teacher]]\n[[teacher]]', "mixing=sum is not one of mean-logits"),
        ('[[teacher]]\nmodel = "a"\n[[teacher]]\nmodle = "b"', "2 has no option 'modle'; did you mean 'model'"),
        ("[[teacher]]\n[[teacher]]", "1 lacks model"),
        ("[[teacher", "teachers.toml cannot be read"),
    ],
)
def test_file__says_what_is_wrong_in_it(tmp_path, text, said):
    (tmp_path / "teachers.toml").write_text(text)
    with pytest.raises(RequestError, match=said):
        load(str(tmp_path / "teachers.toml"))


ONE = {"classes": ("a", "b", "c")}


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        ((net(0), net(1, 4)), "teachers of 3, 4 classes, and nothing names those of Net"),
        ((net(0), net(1, channels=1)), "takes 1 input channels, Net takes 3"),
        ((of(net(0), **ONE), of(net(1), classes=("a", "b"))), "2 classes are named for Net, which has 3"),
        ((of(net(0), classes=("a", "b", "b")), net(1)), "two classes called 'b'"),
        ((of(net(0), classes="nowhere.txt"), net(1)), "^classes = nowhere.txt cannot be read: No such file"),
        ((of(net(0), **ONE), of(net(1), other="d", **ONE)), "no class other = 'd'; there are a, b, c"),
        ((of(net(0), **ONE), of(net(1), weight=0.0, **ONE)), "the weight 0.0 of Net is not a number above 0"),
        ((of(net(0), **ONE), of(net(1), class_weights={"x": 1.0}, **ONE)), "has no class 'x' to weigh"),
        ((of(net(0), **ONE), of(net(1), class_weights={"a": "b"}, **ONE)), "the weight b of Net"),
        ((net(0), OneTeacher("lenet5")), "has no weights, and its predictions would be random"),
        ((net(0), OneTeacher("nowhere/run")), "is not a finished RUN"),
    ],
)
def test_teachers__that_do_not_go_together_are_refused(teachers, said):
    with pytest.raises(RequestError, match=said):
        load(several(*teachers))


def test_python__takes_a_list_of_networks_and_teachers():
    own = dfkd.Teacher(net(1), normalize="0.5/0.5", image_size=24)
    teacher = dfkd.Teacher([net(0), own], image_size=16, mixing="entropy", classes=[["a", "b", "c"], ["c", "d", "e"]])
    given = teacher._model
    assert isinstance(given, Several) and given.mixing == "entropy" and "Net + object" in repr(teacher)
    assert (given.teachers[1].normalize, given.teachers[1].image_size) == ("0.5/0.5", 24)
    assert load(given).class_names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("networks", "more", "said"),
    [
        ([net(0)], {}, "a list of teachers needs two or more, not 1"),
        ([net(0), net(1)], {"mixing": "sum"}, "mixing=sum is not one of mean-logits"),
        ([net(0), net(1)], {"classes": [["a"]]}, "1 items for 2 teachers"),
        ([net(0), 3], {}, "teacher is a int"),
        ([net(0), [net(1), net(2)]], {}, "teacher is a list"),
        (net(0), {"mixing": "entropy"}, "for a list of several networks"),
    ],
)
def test_python__refuses_what_is_no_list_of_teachers(networks, more, said):
    with pytest.raises(dfkd.RequestError, match=said):
        dfkd.Teacher(networks, **more)
