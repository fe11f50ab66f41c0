"""Every command, loss and generator on a pretended GPU: no tensor is left on the CPU where it meets one of the GPU."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from dfkd import generators
from dfkd.distill import losses

SHORT = ("--steps", 2, "--batch-size", 16, "--log-every", 1, "--device", "cuda")
STUDENT = "cifar_resnet:depth=8,width=4"
PEERS = {"dml", "codistillation"}
SIZES = {
    "adaptivedeepinversion": "steps=2,batches=1",
    "cmi": "latent=6,width=4,steps=2,warmup=1,projected=8",
    "deepinversion": "steps=2,batches=1",
    "fastdfkd": "latent=6,width=4,steps=2,warmup=1",
    "nayer": "hidden=6,width=4,steps=2,warmup=1",
}


def finite(rows):
    """Whether both steps were trained, with finite losses."""
    return [row["step"] for row in rows] == [1, 2] and all(np.isfinite(row["loss"]) for row in rows)


@pytest.fixture
def distill(lab, selection, tmp_path):
    """A distillation of two steps. Returns what it has logged."""

    def run(*more, source=False, student=STUDENT, teacher=None):
        given = (*lab.flags[:4], "--init", "none") if source else ("--samples", selection)
        options = ("--teacher", *(teacher or (lab.teacher,)), "--student", student, *SHORT, *given, *more)
        assert lab.dfkd("distill", *options, "--out", tmp_path / "run") == 0
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    return run


def test_gpu__refuses_tensors_of_the_cpu_and_computes_as_it_does(gpu):
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(4, 3, 8, 8)
    network(images).square().mean().backward()
    expected = network[0].weight.grad.clone()
    network.zero_grad()
    network.to("cuda")(images.to("cuda")).square().mean().backward()
    found = network[0].weight.grad
    assert found.device.type == "cuda" and torch.equal(found.cpu(), expected)
    for mixed in (
        lambda: network(images),
        lambda: torch.ones(3, device="cuda") + torch.ones(3),
        lambda: torch.ones(3, device="cuda").numpy(),
        lambda: np.asarray(torch.ones(3, device="cuda")),
        lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device="cuda")],
    ):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()
    with torch.autocast("cuda", torch.bfloat16):
        assert network(images.to("cuda")).dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["statistics", "threshold"])
def test_select(lab, tmp_path, gpu, method):
    flags = (*lab.flags[:4], "--pool", lab.few, "--count", 40, "--filter", "fitted", "--method", method)
    teacher = ("--teacher", lab.teacher, "--device", "cuda")
    assert lab.dfkd("select", *teacher, *flags, "--deduplicate", 0.99, "--out", tmp_path / "s") == 0
    assert (np.array(pq.read_table(tmp_path / "s" / "scores.parquet")["reason"]) == "selected").sum() == 40


@pytest.mark.parametrize("mixing", ["mean-logits", "mean-probabilities", "confidence", "entropy", "learned"])
def test_several_teachers(lab, distill, gpu, mixing):
    assert finite(distill("--mixing", mixing, "--loss", "kd", teacher=(lab.teacher, lab.teacher)))


def test_distill__with_the_defaults_and_a_test(lab, distill, tmp_path, gpu):
    assert [row["step"] for row in distill("--test", lab.few_heldout, "--keep-weights", 1)] == [1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_images"] == 100 and result["peak_memory_bytes"] == 10**6


def test_every_loss(distill, gpu):
    names = [name.lower() for name in losses.__all__]
    texts = [{"ft": "ft:paraphraser=1"}.get(name, name) for name in names if name not in PEERS]
    last = distill("--init", "none", "--loss", *texts)[-1]
    assert np.isfinite([last[name] for name in names if name not in PEERS]).all()


@pytest.mark.parametrize("name", sorted(generators.__all__))
def test_every_generator(distill, selection, gpu, name):
    text = f"{name.lower()}:{SIZES.get(name.lower(), 'latent=10,width=4')}"
    real = ("--samples", selection) if getattr(generators, name).needs_real else ()
    assert finite(distill("--source", text, "--loss", "kd", *real, source=True))


@pytest.mark.parametrize(
    "options",
    [
        ("--mixup", 0.5),
        ("--teacher-views", 2),
        ("--batches", "hardest"),
        ("--optimizer", "adamw", "--ema", 0.9, "--class-dropping", 0.05, "--reestimate", 2),
        ("--also", "--student-seed 1 --out run-2", "--loss", "kd", "dml", "codistillation:burn_in=1"),
        ("--also", "--student-seed 1 --out run-2", "--graft", 1),
    ],
)
def test_options_of_distill(distill, gpu, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert finite(distill(*options))


def test_distill__a_teacher_that_is_made_smaller(lab, distill, gpu):
    assert finite(distill("--prune", 0.5, student=lab.teacher))


def test_distill__in_int8(lab, distill, gpu):
    assert finite(distill("--quantize", "int8", student=lab.teacher))


def test_distill__a_tree(distill, gpu):
    assert finite(distill("--loss", "tree", "--init", "none", student="soft_tree:depth=3"))


def test_generate_evaluate_and_explain(lab, tmp_path, gpu):
    teacher, data = ("--teacher", lab.teacher, *lab.flags[:4]), ("--data", lab.few_heldout, "--device", "cuda")
    method = ("--method", "dafl:latent=8,width=4", "--count", 8)
    assert lab.dfkd("generate", *teacher, *method, *SHORT, "--out", tmp_path / "g") == 0
    assert lab.dfkd("evaluate", "--model", lab.teacher, *lab.flags[:4], *data) == 0
    page = ("--out", tmp_path / "page.html", "--entropy", 1, "--count", 2)
    assert lab.dfkd("explain", "--model", lab.teacher, *teacher, *data, *page) == 0
