"""`dfkd explain`: where a student and its teacher disagree, and which pixels both use."""

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dfkd.config import ExplainConfig
from dfkd.data import Pool
from dfkd.data.labels import ClassNames
from dfkd.formats.overwrite import check_output
from dfkd.formats.run_records import read_distillation, run_folder
from dfkd.models.classifier import Classifier, examine
from dfkd.models.features.grad_cam import deepest_map, grad_cam
from dfkd.models.features.taps import Tap
from dfkd.models.own import GivenModel
from dfkd.models.several import given_teacher, load_classifier
from dfkd.report.answers import Answers, Explanation, terminal_lines
from dfkd.report.explanation_page import write
from dfkd.report.knowledge import Knowledge, knowledge
from dfkd.report.markup import page_path
from dfkd.report.table import csv_cell
from dfkd.system.console import answer, say
from dfkd.system.errors import RequestError, reason
from dfkd.system.files import write_text
from dfkd.system.portable import expand
from dfkd.system.spacing import evenly_spaced
from dfkd.system.text import class_name
from dfkd.training.evaluate import check_labels, open_pair, predicted_classes, show_all


def run(config: ExplainConfig) -> None:
    """Run both networks on all images, and write the page and the CSV file.

    Raises: RequestError for a wrong request.
    """
    page = page_path(config.out)
    rows = page.with_suffix(".csv")
    given = (config.model, config.teacher, config.data, config.classes, config.preset, config.foreground)
    for path in (config.out, str(rows)):
        check_output(path, "--out", given)
    found, data, known = explained(config)
    for line in terminal_lines(found):
        answer(line)
    write_text(rows, _table(found.answers, data, found.names))
    write(page, found, known)
    say(f"wrote {page} and {rows}")


def explained(config: ExplainConfig) -> tuple[Explanation, Pool, Knowledge | None]:
    """Return the disagreements, the images, and the knowledge with `--entropy`, without regard to `--out`.

    Raises: RequestError for a wrong request.
    """
    if config.foreground is not None and not config.entropy:
        raise RequestError(f"--foreground {config.foreground} changes nothing without --entropy, such as --entropy 16")
    if config.baseline is not None and not config.entropy:
        raise RequestError(f"--baseline {config.baseline} changes nothing without --entropy, such as --entropy 16")
    named = _named(config)
    config = _as_tested(config)
    student, teacher, data = open_pair(config, config.model, named[1], named[0], _run_of(config.model) is not None)
    assert teacher is not None
    names = student.model.class_names
    if config.classes is not None:
        given_names = ClassNames(config.classes)
        given_names.check(student.model.classes)
        names = given_names.names
    labels = _labels(data, student.model.classes)
    if not names and labels is not None:
        names = data.class_names(student.model.classes)
    baseline = _baseline(config, student, data)
    for classifier in (student, teacher):
        examine(classifier, data)
    answers = answer_all(student, teacher, data, config.batch_size, labels)
    parted = answers.disagreements()[: config.count]
    shown = answers.indices[parted]
    images, taps = _pixels(data, shown), [_deepest(classifier) for classifier in (student, teacher)]
    networks: dict[str, tuple[Classifier, GivenModel]]
    networks = {"student": (student, config.model), "teacher": (teacher, named[0])}
    if baseline is not None:
        networks["baseline"] = (baseline, str(config.baseline))
    found = Explanation(
        student=config.model,
        teacher=named[0] if isinstance(named[0], str) else teacher.model.spec,
        data=named[1],
        answers=answers,
        names=names,
        origins=data.origins(shown),
        images=images,
        raw=not data.encoded,
        cams=(
            _cams(student, taps[0], images, answers.student[parted]),
            _cams(teacher, taps[1], images, answers.teacher[parted]),
        ),
    )
    return found, data, _knowledge(config, networks, data, answers.indices)


def answer_all(
    student: Classifier, teacher: Classifier, data: Pool, batch_size: int, labels: Int[np.ndarray, " images"] | None
) -> Answers:
    """Run both networks on every image. Without labels, unreadable images are left out.

    If the student's logits are not finite, its class is -1. If the teacher's are not finite, its class is -2.
    """
    columns: list[list[Tensor]] = [[], [], [], [], []]

    def take(pixels: UInt8[Tensor, "batch height width channels"]) -> None:
        ours, theirs = (classifier(pixels).logits.double().cpu() for classifier in (student, teacher))
        logs = [torch.log_softmax(logits, dim=1) for logits in (ours, theirs)]
        divergence = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1)
        finite = [logits.isfinite().all(dim=1) for logits in (ours, theirs)]
        best = [values.exp().amax(dim=1).where(known, torch.nan) for values, known in zip(logs, finite, strict=True)]
        classes = [torch.from_numpy(predicted_classes(logits)) for logits in (ours, theirs)]
        classes[0] = classes[0].where(finite[0], -1)  # the teacher has -2: two non-finite outputs do not agree
        for column, values in zip(columns, (*classes, *best, divergence), strict=True):
            column.append(values)

    unreadable = show_all(data, batch_size, take, leave_out=labels is None)
    if unreadable:
        first, why = next(iter(unreadable.items()))
        named = f"{data.origins(np.array([first]))[0]} ({why})"
        if len(unreadable) == len(data):
            raise RequestError(f"none of {len(data):,} images can be read, such as {named}")
        say(f"note: {len(unreadable):,} of {len(data):,} images cannot be read and are left out, such as {named}")
    ours, theirs, *rest = (torch.cat(column).numpy() for column in columns)
    unknown = int(((ours < 0) | (theirs < 0)).sum())
    if unknown:
        say(f"warning: of {unknown:,} images student or teacher gives no finite answer; they count as disagreement")
    return Answers(ours, theirs, rest[0], rest[1], rest[2], labels, unreadable)


def _named(config: ExplainConfig) -> tuple[GivenModel, str]:
    """Return the teacher, or several, and the data: as given, else those of the run."""
    missing = [f"--{name}" for name in ("teacher", "data") if getattr(config, name) is None]
    if not missing:
        assert config.teacher is not None
        assert config.data is not None
        return config.teacher, config.data
    if (run := _run_of(config.model)) is None:
        raise RequestError(f"give {' and '.join(missing)}: --model {config.model} is not a RUN, which has its own")
    request = read_distillation(run).distill
    data = config.data or expand(request.test)
    if data is None:
        raise RequestError(f"give --data: the run {config.model} was not measured on any")
    return config.teacher or given_teacher(expand(request.teacher), request.table.get("mixing")), data


def _run_of(model: GivenModel) -> Path | None:
    """Return the folder of a run. None for another model."""
    return run_folder(expand(model)) if isinstance(model, str) else None


def _as_tested(config: ExplainConfig) -> ExplainConfig:
    """Return the options with `--classes` and `--bits` of the run if the images are those that it was tested on."""
    if config.data is not None or (run := _run_of(config.model)) is None:
        return config
    table = read_distillation(run).distill.table
    classes, bits = expand(table.get("classes")), table.get("bits")
    if config.classes is None and isinstance(classes, str) and Path(classes).is_file():
        config = replace(config, classes=classes)
    return replace(config, bits=bits) if config.bits is None and isinstance(bits, int) else config


def _baseline(config: ExplainConfig, student: Classifier, data: Pool) -> Classifier | None:
    """Load the network with which the student's knowledge is compared. It gets the same images."""
    if config.baseline is None:
        return None
    normalize = config.normalize or (None if _run_of(config.baseline) else student.model.normalize)
    input = replace(student.model.input, normalize=normalize, image_size=data.image_size)
    model = load_classifier(config.baseline, input, "--baseline")
    if model.channels != student.model.channels:
        raise RequestError(f"--baseline takes {model.channels} channels, --model {student.model.channels}")
    return Classifier(model, student.place)


def _labels(data: Pool, classes: int) -> Int[np.ndarray, " images"] | None:
    """Return the labels. None, with a note, if the data has no labels for this number of classes."""
    try:
        data.labels(classes)
    except RequestError as error:
        say(f"note: accuracies are left out: {error}")
        return None
    return check_labels(data, classes)


def _pixels(data: Pool, indices: Int[np.ndarray, " shown"]) -> UInt8[np.ndarray, "shown height width channels"]:
    """Return images in the order of `indices`. The pool is read in its own order."""
    order = np.argsort(indices)
    pixels = data.images(indices[order]).pixels
    return pixels[np.argsort(order)]


def _deepest(classifier: Classifier) -> Tap | None:
    """Return the tap of the deepest feature map. None, with a note, if the network has no such map."""
    try:
        return deepest_map(classifier)
    except RequestError as error:
        say(f"note: no maps of {classifier.model.spec}: {error}")
        return None


def _cams(
    classifier: Classifier,
    tap: Tap | None,
    pixels: UInt8[np.ndarray, "shown height width channels"],
    classes: Int[np.ndarray, " shown"],
) -> Float[np.ndarray, "shown height width"] | None:
    """Return Grad-CAM of the given class of each image. None without images or a feature map, or with a note."""
    if tap is None or not len(pixels):
        return None
    pieces = zip(torch.from_numpy(pixels).split(32), torch.from_numpy(classes).clamp_min(0).split(32), strict=True)
    try:
        maps = [grad_cam(classifier, tap, classifier.preprocess(some), of).cpu() for some, of in pieces]
    except RequestError as error:
        say(f"note: no maps of {classifier.model.spec}: {error}")
        return None
    return torch.cat(maps).numpy()


def _knowledge(
    config: ExplainConfig,
    classifiers: Mapping[str, tuple[Classifier, GivenModel]],
    data: Pool,
    readable: Int[np.ndarray, " images"],
) -> Knowledge | None:
    """Quantify what the networks use of some images, which are spread over the readable images of the data."""
    if not config.entropy:
        return None
    masks = None if config.foreground is None else _masks(config.foreground, len(data))
    indices = readable[evenly_spaced(len(readable), config.entropy)]
    runs = {name: run for name, (_, given) in classifiers.items() if (run := _run_of(given)) is not None}
    bare = {name: classifier for name, (classifier, _) in classifiers.items()}
    return knowledge(bare, runs, _pixels(data, indices), None if masks is None else masks[indices])


def _masks(file: str, images: int) -> Bool[np.ndarray, "images height width"]:
    """Read the foreground mask of every image. Raises: RequestError unless the file has one mask per image."""
    try:
        loaded = np.load(file, allow_pickle=False)
        array = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
    except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise RequestError(f"--foreground {file} is not an .npy or .npz file of masks ({reason(error)})") from None
    if array.ndim != 3 or len(array) != images:
        shape = list(array.shape)
        raise RequestError(
            f"--foreground {file} has shape {shape}; give [{images}, height, width], one mask for each image"
        )
    return array != 0


def _table(answers: Answers, data: Pool, names: Sequence[str]) -> str:
    """Return a CSV with one line per image."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    labels = answers.labels
    head = ["image", "teacher", "teacher_confidence", "student", "student_confidence", "divergence"]
    writer.writerow(["row", *head, *([] if labels is None else ["label"])])
    for row, (index, image) in enumerate(zip(answers.indices, data.origins(answers.indices), strict=True)):
        of = [
            *(class_name(int(answers.teacher[row]), names), f"{answers.teacher_confidence[row]:.4f}"),
            *(class_name(int(answers.student[row]), names), f"{answers.student_confidence[row]:.4f}"),
            f"{answers.divergence[row]:.4f}",
        ]
        label = [] if labels is None else [class_name(int(labels[row]), names)]
        writer.writerow([csv_cell(value) for value in (index, image, *of, *label)])
    return out.getvalue()
