"""Result files say how they were made, and sentences of the pages have their figures and the limits of the code."""

import csv
import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from dfkd.data.images import decode
from dfkd.distill import defaults, specialists
from dfkd.distill.init import classifier, reconstruct
from dfkd.distill.teacher_cache import views
from dfkd.formats import shards
from dfkd.generators import health
from dfkd.models import export
from dfkd.models.features import pixel_entropy
from dfkd.report import compare, explore
from dfkd.select import pool_filter, stored_scores
from dfkd.training import log
from dfkd.training.loggers import base

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted(ROOT.glob("benchmarks/*/results/*.*"))


def records(about):
    """The parts of a result file that each have a date: the whole file, its rows, or its scenarios."""
    parts = about.get("rows") or list(about.values())
    return [about] if "date" in about else [part for part in parts if isinstance(part, dict)]


@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in RESULTS])
def test_result_file__says_its_command_its_date_and_its_machine(file):
    about = json.loads((ROOT / file).with_suffix(".json").read_text(encoding="utf-8"))
    found = records(about)
    assert found
    for part in found:
        assert {**about, **part}["command"]
        assert re.match(r"2\d{3}-\d\d-\d\d\b", part["date"])
        assert part.get("hardware") or part.get("machine")


def figures(source):
    """The figures of `FILE: ROW`: mean and deviation of the top-1 in percent, or the ratio of a row of speed."""
    name, _, row = source.partition(": ")
    (file,) = ROOT.glob(f"benchmarks/*/results/{name}")
    if file.suffix == ".json":
        (ratio,) = [one["ratio"] for one in json.loads(file.read_text(encoding="utf-8"))["rows"] if one["what"] == row]
        return ratio, 0.0
    with file.open(encoding="utf-8", newline="") as lines:
        found = [
            100 * float(line["top1"]) for line in csv.DictReader(lines) if line.get("name", line.get("row")) == row
        ]
    return mean(found), stdev(found) if len(found) > 1 else 0.0


def written(page, sentence):
    """The figures in a page where a sentence has {}, as texts; the sentence has to be there."""
    words = [re.escape(word).replace(r"\{\}", r"(\d[\d,]*(?:\.\d+)?)") for word in sentence.split()]
    found = re.search(r"\s+".join(words), (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert found, f"{page} no longer has: {sentence}"
    return [figure.replace(",", "") for figure in found.groups()]


CLAIMS = [
    (
        "results.md",
        "after 500 steps {} % without a filter, {} % with it",
        ["tiny100-filter.csv: cifar-500", "tiny100-filter.csv: cifar-filtered-500"],
    ),
    (
        "results.md",
        "evenly over classes, with `kd ofd` give {} %, and {} % with the teacher's layers ({} % after 500 steps)",
        [
            "tiny100.csv: balanced-kd-ofd",
            "tiny100.csv: confident-ofd-init",
            "tiny100-500-steps.csv: confident-ofd-init-500",
        ],
    ),
    (
        "results.md",
        "{} % with `statistics`, {} % with the photos alone, {} % with random images (three seeds), and {} % with",
        [f"heap-20-500-steps.csv: heap-20-{name}-500" for name in ("statistics", "clean", "random", "threshold")],
    ),
    (
        "results.md",
        "`statistics` gives {} % and random images {} % (1,000 test images)",
        [f"resnet56-heap-20-500-steps.csv: resnet56-heap-20-{name}-500" for name in ("statistics", "random")],
    ),
    (
        "results.md",
        "`statistics` gives {} %, `threshold` {} %, random images {} %, and the most confident images {} %",
        [f"heap-digits.csv: {name}-150" for name in ("statistics", "threshold", "random", "confidence")],
    ),
    (
        "results.md",
        "random images give {} %, and `statistics` gives {} %. With the option it gives {} %, and all 2,000 photos {}",
        [f"heap-2-500-steps.csv: {name}-500" for name in ("random", "statistics", "heap-2-pixels", "clean")],
    ),
    (
        "results.md",
        "the option makes no difference ({} and {} %, one seed)",
        ["heap-20-500-steps.csv: heap-20-pixels-500", 88.30],  # LOG.md: the same seed on the same machine
    ),
    (
        "results.md",
        "gives {} %, photos alone {} %, `threshold` {} %, the most confident images {} %, and random images {} %",
        [f"adversarial-500-steps.csv: {name}" for name in ("statistics", "clean", "threshold", "confidence", "random")],
    ),
    (
        "results.md",
        "class dropping cost six points ({} instead of {} % after 2,000 steps, seed 0)",
        ["cifar10-2000-steps.csv: confident-bucket", 79.54],
    ),
    (
        "teaching.md",
        "The two specialists gave {} ± {} %, and the same steps of `kd` for the generalist {} ± {} %",
        ["specialists-digits.csv: specialists", "specialists-digits.csv: further-equal-steps"],
    ),
    (
        "teaching.md",
        "ten gave {} % and the same steps of `kd` {} % (one seed)",
        ["specialists-tiny100.csv: specialists", "specialists-tiny100.csv: further-equal-steps"],
    ),
    (
        "teaching.md",
        "one teacher of 92.7 % gives {} %. With a second one of 91.6 % it is {} %, and with a third one of 84.6 % {} %",
        [f"teachers-cifar10.csv: {name}" for name in ("one", "two", "three")],
    ),
    (
        "teaching.md",
        "Students of one teacher had {} ± {} %, of three teachers {} ± {} to {} ± {} %",
        [f"teachers-digits.csv: {name}" for name in ("one", "three", "three-confidence")],
    ),
    (
        "teaching.md",
        "({} ± {} %) was above `kd` ({} ± {} %), by less than the deviation over seeds. `kd` for 400 steps had {} ± {}",
        [f"students-digits.csv: {name}" for name in ("kd-cskd", "kd", "kd-twice-the-steps")],
    ),
    (
        "photos.md",
        "with half of its channels | {} | {} | | `mobilenet_v3_small` from random weights | {} | {} |",
        [
            f"photos-a-500-steps.csv: {name}-500"
            for name in ("half-defaults", "half-random-kd", "mobilenet-defaults", "mobilenet-random-kd")
        ],
    ),
    (
        "speed.md",
        "| `dfkd select`, ResNet-20 of width 32 | the same teacher alone, unmodified, on pixels in memory | {} |",
        ["selecting.json: select, ResNet-20 of width 32, images/s"],
    ),
    (
        "speed.md",
        "| a step of `kd --teacher-views` | a step of `kd` with the teacher | {} |",
        ["distilling.json: distill kd, kept answers, against a step of kd"],
    ),
    (
        "machines.md",
        "| `kd`, two processes of one thread | one process of two threads | {} |",
        ["machines.json: kd, two processes of one thread; one of two, images/s"],
    ),
]
"""Sentences of the pages, in which {} is a figure, and the row of a result file that each figure comes from."""


@pytest.mark.parametrize(("page", "sentence", "sources"), CLAIMS)
def test_figures_of_a_sentence__are_those_of_the_result_files(page, sentence, sources):
    expected = []
    for source in sources:
        value, deviation = figures(source) if isinstance(source, str) else (source, 0.0)
        expected += [value, deviation] if "±" in sentence else [value]
    for figure, value in zip(written(page, sentence), expected, strict=True):
        unit = 10.0 ** -len(figure.partition(".")[2])
        assert abs(float(figure) - value) <= unit / 2 + 1e-6, f"{figure} in the text, {value} in the file"


LIMITS = [
    ("reference.md", "the nearest tenth of {} images of the pool", [pool_filter.SEARCHED]),
    ("reference.md", "fitted for images up to 64 pixels, from {} images on", [pool_filter.LEAST]),
    ("reference.md", "This takes {} views of the selection", [reconstruct._IMAGES]),
    ("reference.md", "on {} views of the selection and at most eight", [classifier._VIEWS]),
    ("reference.md", "The smallest crop has {} of the area, or {}", [defaults.PHOTO_AREA, defaults.FITTED_PHOTO_AREA]),
    (
        "reference.md",
        "The default is {} if the momentum of a layer is below {},",
        [defaults.REESTIMATED, defaults.SLOW_MOMENTUM],
    ),
    ("reference.md", "JPEG files of quality {} whose", [decode.STORED_QUALITY]),
    ("reference.md", "About {} times in a training, {} images", [base.PICTURES, log.SHOWN]),
    ("reference.md", "Learning curves are those of the first {} rows", [compare.EXPLAINED]),
    ("reference.md", "If there are more than {} scores, the page has a sample", [explore.MOST]),
    ("options.md", "Each takes some {} forward and backward passes", [pixel_entropy.STEPS * pixel_entropy.SAMPLES]),
    ("reliability.md", "| scoring | {} images;", [stored_scores.PART_ROWS]),
    ("reliability.md", "| one view of {} images |", [views.PART_ROWS]),
    ("reliability.md", "a shard: {} images or {} MiB", [shards.ROWS_PER_SHARD, shards.BYTES_PER_SHARD / 2**20]),
    ("photos.md", "runs the file on {} images of the selection", [export.CHECKED]),
    ("photos.md", "calibrated on {} other images", [export.CALIBRATED]),
    ("generators.md", "Every {} steps it also has three measures of {} images", [health.EVERY, health.OBSERVED]),
    ("teaching.md", "on up to {} images of `--samples`", [specialists.IMAGES]),
]
"""Sentences of the pages, in which {} is a limit or default, and what the code has."""


@pytest.mark.parametrize(("page", "sentence", "code"), LIMITS)
def test_limits_of_a_sentence__are_those_of_the_code(page, sentence, code):
    assert [float(figure) for figure in written(page, sentence)] == code
