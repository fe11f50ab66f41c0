"""`dfkd.Teacher`: calls from Python of the stages that begin with a teacher."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.app.calls import (
    computing,
    configured,
    data_text,
    model_text,
    network,
    opened,
    path_text,
    plain,
    teacher_text,
    with_options,
)
from dfkd.app.results import Run, Selection
from dfkd.config import ModelConfig
from dfkd.config.stage_table import STAGES
from dfkd.config.stages.shared import AS_STATED, Input, Interpolation, Mixing
from dfkd.config.tables import check_mapping
from dfkd.data.images.normalize import given_statistics
from dfkd.data.locate import GivenData
from dfkd.data.own import data_of
from dfkd.models.find import OBJECT, check_name
from dfkd.models.own import GivenModel, OneTeacher, OwnNetwork, Several
from dfkd.models.several import names_several
from dfkd.system.errors import RequestError
from dfkd.system.names import convert
from dfkd.system.portable import expand


class Teacher:
    """A trained classifier, or several, with the preprocessing of its input.

    Methods take the options of the commands as keywords, with the same names and defaults. Modules that are passed are
    copied and never changed. Without `out`, a method writes to a folder of the cache (`DFKD_CACHE`). The next call with
    the same content finds this folder again.

    Args:
        network: An `nn.Module` from images [batch, channels, height, width] to logits [batch, classes], a MODEL text,
            or a `Run`, whose student becomes the teacher. A list of two or more of these, or of `Teacher` objects, is
            an ensemble.
        normalize: `imagenet`, `cifar10`, `none`, or `mean,.../std,...` of pixels in [0, 1]. Default: the model's value,
            else `imagenet`.
        image_size: Side of the input in pixels. Default: the model's value.
        crop_pct: Image size divided by the size that the shorter side is resized to. Default: the model's value,
            else 1.
        interpolation: Method by which larger images are resized. Default: the model's value, else `bilinear`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        mixing: For a list: `mean-logits`, `mean-probabilities`, `confidence`, `entropy` or `learned`. Default:
            `mean-logits`.
        classes: For a list: a file or a list of class names for each network.

    Raises:
        RequestError: An argument has another value, a list has fewer than two networks, or there is no such model.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> import dfkd
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> teacher = dfkd.Teacher(network, normalize="none", image_size=8)
        >>> pool = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        >>> selection = teacher.select(pool, method="confidence", count=20, verbose=False)
        >>> len(selection)
        20
        >>> run = teacher.distill(network, selection, loss="kd", steps=1, batch_size=4, verbose=False)
        >>> run.result["steps"]
        1
    """

    def __init__(
        self,
        network: "str | Path | nn.Module | Run | Sequence[Any]",
        *,
        normalize: str | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        interpolation: Interpolation | None = None,
        device: str | torch.device = "auto",
        mixing: str | None = None,
        classes: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        with opened(verbose=False):
            self._model: GivenModel
            if isinstance(network, (list, tuple)):
                self._model = _several(network, mixing, classes)
            elif mixing is not None or classes is not None:
                given = "mixing" if mixing is not None else "classes"
                raise RequestError(f"{given} is for a list of several networks; leave it out, or give such a list")
            else:
                self._model = _model(network, "teacher")
            known = _expected(network[0] if isinstance(network, (list, tuple)) else network)
            input = Input(normalize, image_size, crop_pct, interpolation).over(known)
            own = {name: plain(value, name) for name, value in {**vars(input), "device": device or "auto"}.items()}
            self._options = check_mapping(ModelConfig, own, "dfkd.Teacher()")
            ModelConfig(**self._options)
            if self._options["normalize"] is not None:
                given_statistics(self._options["normalize"])
            for text in _texts(self._model):
                check_name(text)

    @with_options("select")
    def select(self, pool: Any, *, out: str | Path | None = None, verbose: bool = True, **options: Any) -> Selection:
        """Select images from an unlabeled pool to distill this teacher with.

        Args:
            pool: A DATA text or a list of them, uint8 images [images, height, width, channels] as an array or tensor,
                or a map-style data set of images.
            out: The folder to write. Default: a folder of the cache.
            verbose: Whether progress and notes are printed.

        Returns:
            The selected images with the teacher's logits.

        Raises:
            RequestError: An option or an image is wrong, or too many images cannot be read.
        """
        from dfkd.select.stage import select

        with computing(verbose):
            data = [_data(one, "pool") for one in (pool if isinstance(pool, list) else [pool])]
            own = self._own(out, pool=tuple(map(data_text, data)))
            config = configured(stage := STAGES["select"], options, own)
            if config.part is not None:
                raise RequestError(
                    "--part scores a part of the pool and returns no selection; use the command line for it"
                )
            return Selection(stage.within(config, select, config, self._model, data))

    @with_options("generate")
    def generate(
        self, method: str | type, *, out: str | Path | None = None, verbose: bool = True, **options: Any
    ) -> Selection:
        """Make images from the teacher alone.

        Args:
            method: A generator with its options, such as `deepinversion` or `dafl:width=32`, or your class.
            out: The folder to write. Default: a folder of the cache.
            verbose: Whether progress and notes are printed.

        Returns:
            The images with the teacher's logits. `distill` and `select` take them as input.

        Raises:
            RequestError: An option is wrong, or the method cannot use this teacher.
        """
        from dfkd.generators.stage import generate

        with computing(verbose):
            student = None if options.get("student") is None else _model(options["student"], "student")
            named: dict[str, Any] = {}
            named |= {"samples": _folders(options["samples"])} if options.get("samples") is not None else {}
            named |= {"fill": _one_folder(options["fill"], "fill")} if options.get("fill") is not None else {}
            named |= {"student": model_text(student)} if student is not None else {}
            named |= {"method": method}
            config = configured(stage := STAGES["generate"], {**options, **named}, self._own(out))
            return Selection(stage.within(config, generate, config, self._model, student or config.student))

    @with_options("distill", "also")
    def distill(
        self,
        student: "str | Path | nn.Module | Run",
        samples: Any = (),
        *,
        test: Any = None,
        out: str | Path | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> Run:
        """Train a student on selections, and measure its accuracy on labeled data if `test` is given.

        Args:
            student: A module, which is copied and begins with its own weights unless `init="teacher"`. A new last layer
                of a trained module is fitted to the teacher's logits. Or a MODEL text, or a `Run`.
            samples: One or several selections, or their folders. Optional with `source`.
            test: Labeled images: a DATA text, a pair (images, labels) of arrays, or a map-style data set.
            out: The folder to write. Default: a folder of the cache.
            verbose: Whether progress and notes are printed.

        Returns:
            The finished run: its student, metrics and result.

        Raises:
            RequestError: An option is wrong, the student does not fit, or a loss is no longer finite.
        """
        from dfkd.distill.stage import distill

        with computing(verbose):
            learner = _model(student, "student")
            tested = None if test is None else _data(test, "test")
            own = self._own(out, student=model_text(learner), samples=tuple(_folders(samples)), also=())
            own |= {"test": None if tested is None else data_text(tested)}
            config = configured(stage := STAGES["distill"], options, own)
            given = (self._model, learner, tested if tested is not None else config.test)
            folder, _ = stage.within(config, distill, config, *given)
        like = student._given if isinstance(student, Run) else student
        return Run(folder, like if isinstance(like, nn.Module) else None)

    @with_options("evaluate", "model", "json")
    def evaluate(self, data: Any, *, teacher: Any = None, verbose: bool = True, **options: Any) -> dict[str, Any]:
        """Measure this classifier on labeled data, and its agreement with a teacher.

        Args:
            data: Labeled images, as `test` of `distill`.
            teacher: A `Teacher`, or an argument from which `Teacher` makes one. Its predictions are compared with this
                classifier's.
            verbose: Whether progress and notes are printed.

        Returns:
            `top1`, `top5`, `agreement`, `teacher_top1` and `calibration_error` from 0 to 1, and counts.

        Raises:
            RequestError: An option is wrong, or the data have no labels of this classifier.
        """
        from dfkd.training.evaluate import evaluate

        with computing(verbose):
            images = _data(data, "data")
            other = None if teacher is None else _teacher(teacher)
            own = {**self._options, "model": _line(self._model), "data": data_text(images), "json": None}
            own |= {"teacher": None if other is None else _line(other)}
            config = configured(stage := STAGES["evaluate"], options, own)
            measured = partial(evaluate, teacher_normalize=_expected(teacher).normalize)
            figures: dict[str, Any] = stage.within(config, measured, config, self._model, images, other)
            return figures

    def __repr__(self) -> str:
        line = _line(self._model).removeprefix(OBJECT)
        given = {name: value for name, value in self._options.items() if value not in (None, "auto")}
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"<dfkd.Teacher {line}{f': {told}' if told else ''}>"

    def _own(self, out: str | Path | None, **found: Any) -> dict[str, Any]:
        """Return the options that a call sets itself."""
        mixing = self._model.mixing if isinstance(self._model, Several) else None
        given = {"teacher": teacher_text(self._model), "mixing": mixing}
        return {**self._options, **given, "out": path_text("" if out is None else out, "out"), **found}


def _model(value: Any, option: str) -> str | OwnNetwork:
    """Return one network. Raises: RequestError for several networks, or any other type."""
    if isinstance(value, Run):
        return value.model
    if not isinstance(value, Teacher):
        return network(value, option)
    if isinstance(value._model, Several):
        raise RequestError(f"--{option} is a dfkd.Teacher of several networks, and one is needed")
    return value._model


def _teacher(value: Any) -> GivenModel:
    """Return one network, or several."""
    if isinstance(value, (list, tuple)):
        return _several(value, None, None)
    return value._model if isinstance(value, Teacher) else _model(value, "teacher")


def _several(networks: Sequence[Any], mixing: str | None, classes: Sequence[str | Sequence[str]] | None) -> GivenModel:
    """Return the teachers of a list. Raises: RequestError for fewer than two."""
    if len(networks) < 2:
        raise RequestError(f"a list of teachers needs two or more, not {len(networks)}; give one without a list")
    if isinstance(classes, str) or not all(isinstance(names, (str, list, tuple)) for names in classes or ()):
        raise RequestError("classes is not a list; give a file or a list of class names for each network")
    if classes is not None and len(classes) != len(networks):
        raise RequestError(f"classes has {len(classes)} items for {len(networks)} teachers; give one for each")
    teachers = []
    for number, one in enumerate(networks):
        said = _expected(one)
        named = None if classes is None else classes[number]
        named = named if named is None or isinstance(named, str) else tuple(map(str, named))
        model = _model(one, "teacher")
        teachers.append(OneTeacher(model, said.normalize, said.image_size, named))
    return Several(tuple(teachers), None if mixing is None else convert(mixing, Mixing, "mixing"))


def _expected(value: Any) -> Input:
    """Return the known input of a network."""
    if isinstance(value, Teacher):
        return ModelConfig(**value._options).input
    return Input(**value.input) if isinstance(value, Run) else AS_STATED


def _texts(model: GivenModel) -> list[str]:
    """Return the MODEL texts of a teacher, without a file of several teachers."""
    models = [one.model for one in model.teachers] if isinstance(model, Several) else [model]
    return [text for text in models if isinstance(text, str) and not names_several(text)]


def _line(model: GivenModel) -> str:
    """Return the text of a teacher in one line."""
    text = teacher_text(model)
    return text if isinstance(text, str) else " + ".join(text)


def _data(value: Any, option: str) -> GivenData:
    return str(value.folder) if isinstance(value, Selection) else expand(data_of(value, option))


def _folders(samples: Any) -> list[str]:
    """Return the folders of selections."""
    return [_one_folder(one, "samples") for one in (samples if isinstance(samples, (list, tuple)) else [samples])]


def _one_folder(value: Any, option: str) -> str:
    if isinstance(value, Selection):
        return str(value.folder)
    if not isinstance(value, (str, Path)):
        raise RequestError(f"--{option} is a {type(value).__name__}, not a selection or its folder")
    return path_text(value, option)
