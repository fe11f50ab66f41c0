"""Inputs that public issue trackers report; LOG.md has a row for each, with its link and what became of it."""

import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file, save_model
from torch import nn

from dfkd.app import cli
from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.models.load import load_model
from dfkd.models.load_weights import load_weights
from dfkd.system.errors import RequestError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(file, format, **options)
    return file.getvalue()


FILES = [encode(image) for image in PIXELS]


def read(path: Path) -> np.ndarray:
    """The pixels of all images, each of which can be read."""
    pool = open_pool([str(path)], image_size=16, channels=3)
    found = pool.images(np.arange(len(pool)))
    assert not found.problems
    return found.pixels


def labels_of(path: Path) -> list[int]:
    return open_pool([str(path)], image_size=16, channels=3).labels().tolist()


def chunk(kind: bytes, data: bytes, broken: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ broken
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


@pytest.mark.parametrize(
    "beside",
    [
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"tEXt", b"k\0v", broken=True),
        chunk(b"iCCP", b"k\0\0" + zlib.compress(b"x"), broken=True),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_decode__reads_a_png_whose_metadata_is_broken_or_large(tmp_path, beside, mode):
    """PNG files whose pixels are whole, and whose text or color profile is not, or is above a limit."""
    image = Image.fromarray(PIXELS[0]).convert(mode)
    data = encode(image)
    (tmp_path / "a.png").write_bytes(data[:33] + beside + data[33:])
    assert np.array_equal(read(tmp_path)[0], np.asarray(image.convert("RGB")))


def test_decode__takes_the_first_picture_of_several(tmp_path):
    """Files with several pictures: what phones call JPEG (MPO), animated PNG, a palette with transparency."""
    first, second = map(Image.fromarray, PIXELS[:2])
    mpo = encode(first, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    (tmp_path / "a.jpg").write_bytes(mpo)
    (tmp_path / "b.png").write_bytes(encode(first, save_all=True, append_images=[second]))
    (tmp_path / "c.png").write_bytes(encode(first.quantize(64), transparency=bytes([0] + [255] * 63)))
    found = read(tmp_path).astype(int)
    assert np.abs(found[0] - PIXELS[0]).mean() < 4 and np.array_equal(found[1], PIXELS[0])
    clear = np.asarray(first.quantize(64)) == 0
    assert (found[2][clear] == 255).all() and not (found[2][~clear] == 255).all()


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle"])
def test_folder__leaves_out_what_systems_add(tmp_path, folder):
    """Class folders beside one that a system or a notebook has made, which would move every label by one."""
    for i, name in enumerate(("cat", "dog", folder)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(FILES[i])
    assert np.array_equal(read(tmp_path), PIXELS[:2]) and labels_of(tmp_path) == [0, 1]


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tar__labels_of_names_with_dots_are_their_own(tmp_path, capsys):
    """WebDataset archives whose names have dots before the suffix, so that many samples share a key."""
    members = [m for i in range(4) for m in ((f"d/22.0{i}.png", FILES[i]), (f"d/22.0{i}.cls", b"%d" % (9 - i)))]
    assert labels_of(write_tar(tmp_path / "x.tar", members)) == [9, 8, 7, 6]
    assert "samples of several images" not in capsys.readouterr().err


@pytest.mark.parametrize("again", ["a.cls", "a.other.cls"])
def test_tar__two_labels_of_an_image_are_refused(tmp_path, again):
    """Archives in which a name, or a key, has several labels: one was appended, or shards were joined."""
    image = "a.png" if again == "a.cls" else "a.x.png"
    tar = write_tar(tmp_path / "x.tar", [(image, FILES[0]), ("a.cls", b"0"), (again, b"1")])
    with pytest.raises(RequestError, match=r"is twice in|has several labels"):
        labels_of(tar)


def test_tar__labels_may_lie_anywhere(tmp_path):
    """Archives whose members are not sorted by sample, with long names."""
    names = ["d" * 90 + "/" + "é" * 80 + str(i) for i in range(4)]
    members = [(f"{name}.png", FILES[i]) for i, name in enumerate(names)]
    members += [(f"{name}.cls", b"%d\n" % i) for i, name in enumerate(names)]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tar = write_tar(tmp_path / f"{format}.tar", members, format)
        assert labels_of(tar) == [0, 1, 2, 3] and np.array_equal(read(tar), PIXELS)


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_tar__reads_files_with_holes(tmp_path, format):
    """Archives that were packed with --sparse."""
    with (tmp_path / "a.bmp").open("wb") as file:
        file.write(encode(PIXELS[0], "BMP"))
        file.truncate(1 << 20)
    (tmp_path / "b.png").write_bytes(FILES[1])
    command = ["tar", "--sparse", f"--format={format}", "-C", str(tmp_path), "-cf", str(tmp_path / "x.tar")]
    subprocess.run([*command, "a.bmp", "b.png"], check=True)
    assert (tmp_path / "x.tar").stat().st_size < 1 << 19
    assert np.array_equal(read(tmp_path / "x.tar"), PIXELS[:2])


@pytest.mark.parametrize(("name", "said"), [("x.tar.gz", "a plain .tar"), ("x.zip", "unpack it"), ("x.npy", "savez")])
def test_open_pool__says_what_to_do_with_other_files(tmp_path, name, said):
    """Packed archives and single arrays in the place of data."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RequestError, match=f"is in no known format; .*{said}"):
        open_pool([str(tmp_path / name)], image_size=16, channels=3)


@pytest.mark.parametrize(
    "column",
    [pa.array(FILES).dictionary_encode(), pa.array(FILES, pa.binary_view()), pa.array(FILES, pa.large_binary())],
)
def test_table__reads_bytes_of_every_arrow_type(tmp_path, column):
    """Tables of other libraries, whose bytes are of a dictionary, a view or a large type."""
    pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
    assert np.array_equal(read(tmp_path / "x.parquet"), PIXELS)
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema({"image": column.type})) as f,
    ):
        f.write_batch(pa.record_batch({"image": column}))
    assert np.array_equal(read(tmp_path / "x.arrow"), PIXELS)


def test_table__takes_whole_numbers_as_labels_and_says_why_others_are_none(tmp_path):
    """Label columns as other libraries write them: floats, truth values, missing ones, names."""
    table = tmp_path / "x.parquet"
    for values, labels in (([0.0, 2.0, 1.0, 5.0], [0, 2, 1, 5]), ([True, False, True, True], [1, 0, 1, 1])):
        pq.write_table(pa.table({"image": FILES, "label": values}), table)
        assert labels_of(table) == labels
    names = pa.array(["cat", "dog", "cat", "cat"])
    refused = [
        ([0, None, 1, 1], "1 rows, the first is #1"),
        (names, "words .'cat'"),
        (names.dictionary_encode(), "cat"),
    ]
    for values, said in refused:
        pq.write_table(pa.table({"image": FILES, "label": values}), table)
        with pytest.raises(RequestError, match=said):
            labels_of(table)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def assert_loads(path: Path, trained: nn.Module) -> None:
    fresh = network(2)
    load_weights(fresh, path)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.net.", "_orig_mod.module."])
def test_weights__under_a_prefix_beside_others_are_found(tmp_path, capsys, prefix):
    """Checkpoints of trainers: the network under a name, beside the buffers of a loss or a metric."""
    trained = network(1)
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(5)}, "epoch": 3}, tmp_path / "w.ckpt")
    assert_loads(tmp_path / "w.ckpt", trained)
    assert "left out: 1 (criterion.weight)" in capsys.readouterr().err
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    assert_loads(tmp_path / "w.ckpt", trained)


def test_weights__of_teacher_and_student_in_one_are_asked_for_by_name(tmp_path, capsys):
    """Checkpoints of a distillation elsewhere, or of a network and its average, with the same keys twice."""
    teacher, student = network(1), network(3)
    both = {f"teacher.{k}": v for k, v in teacher.state_dict().items()}
    torch.save({"state_dict": both | {f"architecture.{k}": v for k, v in student.state_dict().items()}}, tmp_path / "w")
    with pytest.raises(RequestError, match=r"2 times .under teacher, architecture.; say which: w#teacher"):
        assert_loads(tmp_path / "w", teacher)
    assert_loads(tmp_path / "w#teacher", teacher)
    assert_loads(tmp_path / "w#architecture", student)
    torch.save(
        {"model_ema." + k.partition(".")[2]: v for k, v in both.items()}
        | {f"model.{k}": v for k, v in student.state_dict().items()},
        tmp_path / "w",
    )
    assert_loads(tmp_path / "w", student)
    assert "w#model_ema takes 'model_ema'" in capsys.readouterr().err


def test_weights__in_several_files_are_joined_by_their_list(tmp_path):
    """Safetensors and pickles in numbered parts, with an index; one of the parts alone; an index that leads away."""
    trained = network(1)
    state = trained.state_dict()
    for save, suffix in ((save_file, "safetensors"), (torch.save, "bin")):
        parts = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
        where = {key: parts[i > 3] for i, key in enumerate(state)}
        for name in parts:
            save({key: state[key] for key in state if where[key] == name}, tmp_path / name)
        index = tmp_path / f"model.{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
        assert_loads(index, trained)
        with pytest.raises(RequestError, match=rf"one of several parts; name their list, model.{suffix}.index.json"):
            assert_loads(tmp_path / parts[0], trained)
        index.write_text(json.dumps({"weight_map": {"0.weight": f"../{parts[0]}"}}))
        with pytest.raises(RequestError, match="not a file beside them"):
            assert_loads(index, trained)


@pytest.mark.parametrize(("name", "said"), [("dcp", "dcp_to_torch"), ("w.npz", "none that torch.save writes")])
def test_weights__of_other_writers_are_named(tmp_path, name, said):
    """Checkpoints of several processes (FSDP), and arrays of NumPy."""
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / "__0_0.distcp").touch()
    np.savez(tmp_path / "w.npz", **{"0.weight": np.ones(3)})
    with pytest.raises(RequestError, match=said):
        load_weights(network(), tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_weights__that_are_quantized_are_refused_by_name(tmp_path):
    """State dicts of quantized networks for the float network."""
    state = network().state_dict()
    state["3.weight"] = torch.quantize_per_tensor(state["3.weight"], 0.01, 0, torch.qint8)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"hold quantized tensors \(3.weight\)"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("change", [lambda v: v.bfloat16(), lambda v: v.double(), lambda v: v.clone()])
def test_weights__of_other_precision_and_age_load(tmp_path, change):
    """Weights in bfloat16 and float64, and from before BatchNorm counted its batches."""
    trained = network(1)
    state = {k: change(v) if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    torch.save({k: v for k, v in state.items() if not k.endswith("tracked")}, tmp_path / "w.pt")
    fresh = network(2)
    load_weights(fresh, tmp_path / "w.pt")
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in fresh.state_dict().items())


CODE = """
import copy
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

pass  # import


class Net(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(self.bn(self.conv(x)).mean((2, 3))).relu()))


class Fourier(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("phases", torch.polar(torch.ones(8, 8), torch.arange(64.0).view(8, 8)))

    def forward(self, x):
        return super().forward((torch.fft.fft2(x) * self.phases).abs() / 8)


class Remembers(Net):
    scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]

    def forward(self, x):
        return self.scale * super().forward(x)


class Overwrites(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.1).mul_(2))


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(5)


class Normed(Net):
    def __init__(self):
        super().__init__()
        weight_norm(self.fc)


class Pixel(Net):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]


class Versioned(Net):
    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Odd(Net):
    pretrained_cfg = {"input_size": None, "mean": None}


class Compiled(nn.Module):
    def __init__(self, net):
        super().__init__()
        self._orig_mod = net

    def forward(self, x):
        return self._orig_mod(x)


def parallel():
    return nn.DataParallel(Net())


def compiled():
    return Compiled(Net())


def synchronized():
    return nn.SyncBatchNorm.convert_sync_batchnorm(Net())


def half():
    return Net().half()


def scripted():
    return torch.jit.script(Net())
"""
X = torch.linspace(-1, 1, 4 * 3 * 64).reshape(4, 3, 8, 8)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The module `wild`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wild.py").write_text(CODE)
    sys.modules.pop("wild", None)
    import wild  # type: ignore[import-not-found]

    torch.manual_seed(0)
    yield wild
    sys.modules.pop("wild", None)


@torch.no_grad()
def answers(net: nn.Module) -> torch.Tensor:
    return net.eval()(X.clone())


KINDS = ["Net", "Tied", "Fourier", "Remembers", "Lazy", "Normed", "Odd", "parallel", "compiled", "synchronized", "half"]


@pytest.mark.parametrize("name", KINDS)
def test_load_model__of_every_kind_answers_as_in_plain_pytorch(nets, capsys, name):
    """Networks with shared, complex, lazy or normed weights, a state of their own, or a wrapper around them."""
    like = {"parallel": "Net", "compiled": "Net", "synchronized": "Net", "half": "Net"}.get(name, name)
    net = getattr(nets, like)().eval()
    if name == "Remembers":
        net.scale = 3.0
    right = answers(net)
    torch.save({"state_dict": net.state_dict()}, "w.pt")
    assert torch.equal(answers(load_model(f"wild.{name}@w.pt", Input(image_size=8)).module), right)
    assert "note" not in capsys.readouterr().err


def test_weights__leave_out_the_other_names_of_tied_ones(nets):
    """Safetensors of a network with tied weights, of which only one name is written."""
    net = nets.Tied()
    right = answers(net)
    save_model(net, "w.safetensors")
    assert torch.equal(answers(load_model("wild.Tied@w.safetensors", Input(image_size=8)).module), right)


def test_weights__whose_reader_asks_for_their_version_load(nets):
    """Networks that read old weights in another way by the version that torch writes beside them (MNASNet)."""
    net = nets.Versioned()
    right = answers(net)
    for prefix in ("", "module.", "trainer."):
        state = nn.Module.state_dict(net, prefix=prefix)
        torch.save({"state_dict": state}, "w.pt")
        save_file(dict(state), "w.safetensors")
        for name in ("w.pt", "w.safetensors"):
            assert torch.equal(answers(load_model(f"wild.Versioned@{name}", Input(image_size=8)).module), right)


def test_weights__under_the_names_of_an_older_weight_norm_load(nets):
    """Weights from before torch wrote weight normalization as a parametrization."""
    net = nets.Normed()
    right, state = answers(net), net.state_dict()
    for i, end in enumerate("gv"):
        state[f"fc.weight_{end}"] = state.pop(f"fc.parametrizations.weight.original{i}")
    torch.save(state, "w.pt")
    assert torch.equal(answers(load_model("wild.Normed@w.pt", Input(image_size=8)).module), right)


def test_load_model__of_a_network_that_writes_into_its_input_leaves_it_alone(nets):
    """Networks that normalize their input in place, which teacher and student share."""
    net = nets.Overwrites()
    right = answers(net)
    torch.save(net.state_dict(), "w.pt")
    model, x = load_model("wild.Overwrites@w.pt", Input(image_size=8)), X.clone()
    assert torch.equal(model.module(x), right) and torch.equal(x, X)


def test_load_model__takes_logits_that_are_maps_of_one_pixel(nets):
    """Networks that end in a convolution and give [batch, classes, 1, 1]."""
    net = nets.Pixel()
    right = answers(net)
    torch.save(net.state_dict(), "w.pt")
    model = load_model("wild.Pixel@w.pt", Input(image_size=8))
    assert model.classes == 5 and torch.equal(answers(model.module), right.flatten(1))


@pytest.mark.filterwarnings("ignore:.*jit:FutureWarning", "ignore:.*jit:DeprecationWarning")
def test_load_model__refuses_what_nobody_can_watch(nets):
    """Constructors that return a TorchScript program."""
    with pytest.raises(RequestError, match="built a TorchScript program"):
        load_model("wild.scripted", Input(image_size=8))


@pytest.mark.parametrize(
    "statement",
    ["torch.set_default_dtype(torch.float64)", "torch.set_grad_enabled(False)", "import os; os.chdir('/')"],
)
def test_import__changes_nothing_of_the_process(nets, tmp_path, statement):
    """Modules that change torch's default type, turn gradients off or go to another folder when they are imported."""
    torch.save(nets.Net().state_dict(), "w.pt")
    (tmp_path / "wild.py").write_text(CODE.replace("pass  # import", statement))
    sys.modules.pop("wild", None)
    make = ("--source", "dafl", "--image-size", "8", "--steps", "1", "--batch-size", "4", "--loss", "kd", "--out", "r")
    try:
        assert cli.main(["distill", "--teacher", "wild.Net@w.pt", "--student", "wild.Net", *make]) == 0
        assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
        assert Path("r").is_dir() and Path.cwd() == tmp_path
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
