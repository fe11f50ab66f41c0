import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dfkd.app import cli
from dfkd.config.stages.shared import Input
from dfkd.data.images.normalize import parse_normalize
from dfkd.formats.shards import Shards
from dfkd.models import cifar_resnet, lenet5, lenet5_half
from dfkd.models.health import check_health
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError

CODE = """
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4, last="none"):
        super().__init__()
        self.fc, self.last = nn.Linear(192, num_classes), last

    def forward(self, x):
        x = 9 * self.fc(x.flatten(1))
        ends = {"softmax": F.softmax, "log": F.log_softmax, "none": lambda x, dim: x}
        ends |= {"sigmoid": lambda x, dim: x.sigmoid(), "dropout": lambda x, dim: F.dropout(x, 0.5)}
        ends |= {"batch": lambda x, dim: x - x.mean(0)}
        return ends[self.last](x, dim=1)
"""
FREE = ({0: torch.export.Dim.DYNAMIC},)


@pytest.fixture
def data(tmp_path, monkeypatch, rng):
    """The working folder, with a data set and networks of one's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "field_nets", raising=False)
    (tmp_path / "field_nets.py").write_text(CODE)
    np.savez("data.npz", images=rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), labels=np.arange(12) % 4)
    import field_nets

    torch.manual_seed(0)
    torch.save(field_nets.Net().state_dict(), "net.pt")
    return "data.npz"


def evaluate(model, *more, size=8):
    """Evaluate on the data set; the exit status."""
    flags = ("--image-size", str(size)) if size else ()
    return cli.main(["evaluate", "--model", model, "--data", "data.npz", "--precision", "fp32", *flags, *more])


def select(model, *more):
    flags = ("--image-size", "8", "--precision", "fp32", "--out", "out", "--count", "5", "--filter", "none")
    return cli.main(["select", "--teacher", model, "--pool", "data.npz", *flags, *more])


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("softmax", "probabilities (softmax); their logarithms are taken as its logits"),
        ("log", "log-probabilities (log-softmax), not logits"),
        ("sigmoid", "(sigmoid?), not logits"),
        ("dropout", "differently each time"),
        ("batch", "differently with other images in its batch"),
    ],
)
@pytest.mark.parametrize("command", [evaluate, select])
def test_health__notes_what_answers_are_not(data, capsys, command, last, said):
    """Teachers whose answers are no logits, random, or another in another batch."""
    assert command(f"field_nets.Net:last={last}@net.pt") == 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("last", ["softmax", "log"])
def test_scores__of_a_teacher_that_ends_in_a_softmax_are_those_without_it(data, last):
    """Teachers that give probabilities, or their logarithms: confidence is that of the logits before."""
    for model, out in (("field_nets.Net@net.pt", "plain"), (f"field_nets.Net:last={last}@net.pt", "ended")):
        assert select(model, "--out", out) == 0
    plain, ended = (Shards(Path(out)).column("confidence") for out in ("plain", "ended"))
    assert np.allclose(plain, ended, atol=1e-5)


def test_logarithms__of_probabilities_in_bfloat16_keep_their_digits(data):
    """Teachers that give probabilities, in bfloat16: a logarithm of -7 would be rounded to steps of 0.03."""
    images = torch.randn(6, 3, 8, 8)
    ended, plain = (
        load_model(f"field_nets.Net{end}@net.pt", Input(image_size=8)).module for end in (":last=softmax", "")
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, p = ended(images), plain(images).softmax(dim=1)
    assert p.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, p.float().log())


def test_health__says_in_one_line_that_all_is_well(data, capsys):
    """Teachers with nothing wrong."""
    assert evaluate("field_nets.Net@net.pt") == 0
    said = capsys.readouterr().err
    assert "answers are finite, repeatable, logits" in said and "note: Net" not in said
    state = torch.get_rng_state()
    images = torch.arange(4 * 3).reshape(4, 1, 1, 3).to(torch.uint8)
    check_health(lambda some: torch.rand(len(some), 3), images, "random", True)
    assert torch.equal(state, torch.get_rng_state()) and "note: random answers" in capsys.readouterr().err


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5)])
def test_program__refuses_a_network_exported_in_training_mode(data, capsys, layer):
    """.pt2 files of networks on which .eval() was forgotten."""
    net = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(192, 4))
    for training, status in ((True, 2), (False, 0)):
        net.train(training)
        torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=FREE), "net.pt2")
        assert evaluate("net.pt2") == status
        assert ("call .eval() before exporting" in capsys.readouterr().err) == (status == 2)


@pytest.mark.parametrize(
    "model",
    [
        "timm.create_model:model_name=test_resnet,num_classes=4",
        "timm.create_model:model_name=test_resnet,num_classes=4,pretrained=false",
        "torchvision.models.squeezenet1_1:num_classes=4",
        "squeezenet1_1:num_classes=4,weights=none",
    ],
)
def test_weights__a_constructor_that_was_asked_for_none_is_refused(data, capsys, model):
    """Teachers of torchvision and timm without weights, under any of their names."""
    if model.startswith("timm"):
        pytest.importorskip("timm")
    assert evaluate(model, size=32) == 2
    assert "has no weights, and its predictions would be random" in capsys.readouterr().err


def test_weights__a_class_of_ones_own_that_names_none_is_noted(data, capsys):
    """Teachers of one's own code, which may load weights or not."""
    assert evaluate("field_nets.Net") == 0
    assert "names no weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bytes_", "units"),
    [
        ("123.675,116.28,103.53/58.395,57.12,57.375", "imagenet"),
        ("127.5/127.5", "0.5/0.5"),
        ("0/255", "none"),
        ("102,102,102/1,1,1", "0.4,0.4,0.4/0.00392156862745098"),
    ],
)
def test_normalize__takes_values_for_pixels_up_to_255(data, capsys, bytes_, units):
    """Means and deviations in units of 0 to 255, as many tools print them."""
    assert evaluate("field_nets.Net@net.pt", "--normalize", bytes_) == 0
    assert "is for pixels in [0, 255]" in capsys.readouterr().err
    for found, right in zip(parse_normalize(bytes_, 3), parse_normalize(units, 3), strict=True):
        assert found == pytest.approx(right)
    capsys.readouterr()
    parse_normalize("0.9/2", 3)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("build", [lenet5, lenet5_half])
def test_lenet__takes_28_pixels_as_published(data, build):
    """LeNets for 28 pixels, with a padding of 2 in the first convolution, and for 32 without."""
    net, images = build().eval(), torch.rand(2, 1, 28, 28)
    published = build().eval()
    published.load_state_dict(net.state_dict())
    published.features[0].padding = (2, 2)
    first = published.features(images).flatten(1)
    assert torch.allclose(net(images), published.classifier(first), atol=1e-6)
    larger = torch.rand(2, 1, 32, 32)
    assert torch.equal(net(larger), net.classifier(net.features(larger).flatten(1)))
    torch.save(build(num_classes=4, in_channels=3).state_dict(), "lenet.pt")
    for size in (28, 32):
        assert evaluate(f"{build.__name__}@lenet.pt", size=size) == 0


def test_normalization__of_an_exported_teacher_is_read_from_its_file(tmp_path, monkeypatch, capsys):
    """Files of ours that lose what their network expects of its input."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = cifar_resnet(8, width=4, num_classes=5)
    torch.save(net.state_dict(), "t.pt")
    for form in ("pt2", "safetensors"):
        given = ["--normalize", "0.5/0.25", "--out", f"e.{form}"]
        assert cli.main(["export", "--model", "cifar_resnet:depth=8,width=4@t.pt", *given]) == 0
        model = "e.pt2" if form == "pt2" else "cifar_resnet:depth=8,width=4@e.safetensors"
        loaded = load_model(model)
        assert loaded.preprocess.mean == (0.5,) * 3 and loaded.preprocess.std == (0.25,) * 3
        assert "normalization 0.5/0.25, as its file says" in capsys.readouterr().err
        assert load_model(model, Input("cifar10")).normalize == "cifar10"


def test_normalization__of_a_timm_network_is_its_own(capsys):
    """Networks of a package that says how their input is normalized."""
    vit = load_model("timm.create_model:model_name=vit_tiny_patch16_224,img_size=32,patch_size=8,num_classes=5")
    assert vit.preprocess.mean == vit.preprocess.std == (0.5,) * 3
    assert "as timm says" in capsys.readouterr().err
    assert load_model("timm.create_model:model_name=resnet18,num_classes=5").normalize == "imagenet"
    assert "normalization" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("timm.create_model:model_name=vit_tiny_patch16_224", "timm.create_model:img_size=32"),
        ("vit_b_16", "vit_b_16:image_size=32"),
    ],
)
def test_size__that_only_the_constructor_sets_is_told_with_its_option(student, said):
    """Transformers as students of a teacher of another size."""
    with pytest.raises(RequestError, match=rf"\({said} builds it for this size"):
        load_model(student, Input(image_size=32), classes=5)
