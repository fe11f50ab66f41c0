"""`dfkd evaluate`, and the function that measures both teacher and student."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dfkd.config import DistillConfig, EvaluateConfig, ExplainConfig
from dfkd.data import Pool, open_pool
from dfkd.data.locate import GivenData
from dfkd.formats.overwrite import check_output
from dfkd.formats.run_records import run_folder
from dfkd.models.classifier import Classifier, examine
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.models.several import load_classifier
from dfkd.system.console import answer, progress, say
from dfkd.system.device import resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, write_json
from dfkd.system.portable import portable
from dfkd.system.text import of_classes, visible
from dfkd.training.calibration import calibration_error


@dataclass(frozen=True)
class Measures:
    """Metrics of a model on labeled images. Shares are in [0, 1]."""

    images: int
    top1: float
    top5: float
    calibration_error: float
    per_class: list[float | None]
    """Top-1 accuracy of each class; None for a class without images."""
    agreement: float | None
    """Share of images on which the model and its teacher predict the same class."""
    teacher_top1: float | None
    teacher_per_class: list[float | None] | None = None
    """The teacher's top-1 accuracy of each class."""


def measure(model: Classifier, data: Pool, batch_size: int, teacher: Classifier | None = None) -> Measures:
    """Measure `model` on labeled data that `check_labels` accepts, and its agreement with `teacher` if given.

    Raises: RequestError for missing labels, and for an unreadable image.
    """
    classes = model.model.classes
    labels = data.labels(classes)
    answers, theirs = [], []

    def take(pixels: UInt8[Tensor, "batch height width channels"]) -> None:
        answers.append(model(pixels).logits.cpu())
        if teacher is not None:
            theirs.append(predicted_classes(teacher(pixels).logits))

    show_all(data, batch_size, take)
    logits = torch.cat(answers)
    finite = logits.isfinite().all(dim=1).numpy()
    if not finite.all():
        say(f"warning: {model.model.spec} gives no finite answer for {(~finite).sum():,} images; they count as wrong")
    logits = torch.where(torch.from_numpy(finite)[:, None], logits, 0.0)
    top5 = logits.topk(min(5, classes), dim=1).indices.numpy()
    confidence, predicted = (values.numpy() for values in logits.softmax(dim=1).max(dim=1))
    predicted, top5, confidence = (
        np.where(finite, predicted, -1),
        np.where(finite[:, None], top5, -1),
        confidence * finite,
    )
    right = predicted == labels
    taught = np.concatenate(theirs) if teacher is not None else None
    return Measures(
        images=len(labels),
        top1=float(right.mean()),
        top5=float((top5 == labels[:, None]).any(axis=1).mean()),
        calibration_error=calibration_error(confidence, right),
        per_class=_by_class(right, labels, classes),
        agreement=None if taught is None else float((predicted == taught).mean()),
        teacher_top1=None if taught is None else float((taught == labels).mean()),
        teacher_per_class=None if taught is None else _by_class(taught == labels, labels, classes),
    )


def show_all(
    data: Pool,
    batch_size: int,
    take: Callable[[UInt8[Tensor, "batch height width channels"]], None],
    leave_out: bool = False,
) -> dict[int, str]:
    """Pass all images to `take`, in batches; with `leave_out`, without those that cannot be read.

    Returns: why images were left out, by index.
    Raises: RequestError for an unreadable image without `leave_out`.
    """
    unreadable: dict[int, str] = {}
    with progress("evaluating", len(data), "images") as bar:
        for indices, images in data.batches(batch_size):
            for position, why in images.problems.items():
                if not leave_out:
                    raise _refused(data.origins(indices[position : position + 1])[0], why)
                unreadable[int(indices[position])] = why
            if len(images.problems) < len(indices):
                take(torch.from_numpy(images.readable))
            bar.advance(len(indices))
    return unreadable


def check_files(data: Pool) -> None:
    """Raise RequestError for a file that `measure` would refuse, as far as this shows without decoding all files."""
    if damaged := data.first_damaged():
        raise _refused(*damaged)


def _refused(name: str, why: str) -> RequestError:
    return RequestError(f"{name} cannot be read ({why}); an accuracy needs all images; repair or remove this one")


def _by_class(
    right: Bool[np.ndarray, " images"], labels: Int[np.ndarray, " images"], classes: int
) -> list[float | None]:
    return [float(right[labels == k].mean()) if (labels == k).any() else None for k in range(classes)]


def predicted_classes(logits: Float[Tensor, "batch classes"]) -> Int[np.ndarray, " batch"]:
    """Return the predicted classes; -2 if a logit is not finite.

    -2 is no label, and no prediction of a student.
    """
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -2).cpu().numpy()


def check_labels(data: Pool, classes: int) -> Int[np.ndarray, " images"]:
    """Return the labels of `data`. Raises: RequestError if there are none, or one is not a class of the model."""
    labels = data.labels(classes)
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        one_more = labels.min() > 0 and labels.max() == classes
        hint = "; count them from 0 (a class folder whose name is a number is that class)" if one_more else ""
        raise RequestError(
            f"the data has labels from {labels.min()} to {labels.max()}; the model has classes 0 to {classes - 1}{hint}"
        )
    if (seen := len(np.unique(labels))) < classes:
        say(f"note: there are images of {seen} of the model's {classes} classes")
    return labels


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as `config` says, print the metrics, and write them to the file of `--json`."""
    if config.json is not None:
        if output_path(config.json, "--json").is_dir():
            raise RequestError(f"--json {config.json} is a folder; give a file")
        check_output(config.json, "--json", (config.data, config.model, config.teacher, config.preset, config.classes))
    is_run = run_folder(config.model) is not None  # a student is trained with its teacher's normalization
    figures = evaluate(config, config.model, config.data, config.teacher, is_run)
    names = figures.get("class_names", ())
    for name, value in figures.items():
        if value is not None and name != "class_names":
            answer(visible(f"{name}: {_shown(value, config.json or '--json FILE', names)}"))
    if config.json is not None:
        write_json(Path(config.json), {**figures, "config": portable(asdict(config))})
        say(f"wrote {config.json}")
    return figures


def evaluate(
    config: EvaluateConfig,
    model: GivenModel,
    data: GivenData,
    teacher: GivenModel | None = None,
    as_student: bool = False,
    teacher_normalize: str | None = None,
) -> dict[str, Any]:
    """Return the metrics of a model. Model, teacher and data may be Python objects.

    `teacher_normalize` is the teacher's normalization, by default the one in `config`. With `as_student`, the teacher
    gets the model's normalization if none is given.
    """
    evaluated, taught, images = open_pair(config, model, data, teacher, as_student, teacher_normalize)
    loaded = evaluated.model
    check_labels(images, loaded.classes)
    for classifier in (evaluated, taught):
        if classifier is not None:
            examine(classifier, images)
    measures = measure(evaluated, images, config.batch_size, taught)
    figures = {"model": loaded.spec, "parameters": loaded.parameter_count(), **vars(measures)}
    figures |= evaluated.place.describe()
    names = (loaded.class_names if config.classes is None else ()) or images.class_names(loaded.classes)
    figures |= {"class_names": list(names)} if names else {}
    if taught is not None:
        figures["teacher"] = taught.model.spec
    say(_line(measures))
    return figures


def open_pair(
    config: EvaluateConfig | ExplainConfig,
    model: GivenModel,
    data: GivenData,
    teacher: GivenModel | None,
    as_student: bool,
    teacher_normalize: str | None = None,
) -> tuple[Classifier, Classifier | None, Pool]:
    """Open a model, its teacher if given, and images as both see them. The last two parameters are as for `evaluate`.

    Raises: RequestError for networks that cannot be compared.
    """
    place = resolve_place(config.device, config.precision)
    loaded = load_classifier(model, config.input, "--model")
    images = open_images(data, config, loaded)
    taught = None
    if teacher is not None:
        normalize = teacher_normalize or config.normalize or (loaded.normalize if as_student else None)
        # both see the same images
        known = load_classifier(teacher, replace(loaded.input, normalize=normalize, image_size=images.image_size))
        if (known.classes, known.channels) != (loaded.classes, loaded.channels):
            raise RequestError(
                f"--teacher has {known.classes} classes and {known.channels} channels, --model has "
                f"{loaded.classes} and {loaded.channels}: they cannot be compared"
            )
        taught = Classifier(known, place)
    return Classifier(loaded, place), taught, images


def open_images(data: GivenData, config: EvaluateConfig | ExplainConfig | DistillConfig, model: Model) -> Pool:
    """Open the data of a stage as images that a model takes."""
    return open_pool(
        [data],
        image_size=model.image_size,
        channels=model.channels,
        classes=config.classes,
        own_names=model.class_names,
        bits=config.bits,
        frame=model.frame,
    )


def _line(measures: Measures) -> str:
    parts = [f"top-1 {measures.top1:.2%}", f"top-5 {measures.top5:.2%}", f"{measures.images:,} images"]
    if measures.agreement is not None:
        parts += [f"agreement with the teacher {measures.agreement:.2%}", f"teacher {measures.teacher_top1:.2%}"]
    return ", ".join(parts)


def _shown(value: Any, all_in: str, names: Sequence[str]) -> str:
    if isinstance(value, list):
        return of_classes(value, all_in, ".4f", names)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
