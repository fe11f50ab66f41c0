"""`dfkd.Teacher`: the stages that begin with a teacher, called from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dfkd.app.calls import computing, configured, data_text, model_text, network, opened, with_options
from dfkd.app.results import Run, Selection
from dfkd.config import ModelConfig
from dfkd.config.stage_table import STAGES
from dfkd.config.stages import Interpolation
from dfkd.data.locate import GivenData
from dfkd.data.own import data_of
from dfkd.models.find import check_name
from dfkd.models.own import GivenModel
from dfkd.system.errors import RequestError
from dfkd.system.portable import expand


class Teacher:
    """A trained classifier, and what it expects of its input. Its module is never changed.

    Methods take the options of the stages as keywords, with the same defaults (`dfkd STAGE --help` lists them).
    Where `out` is left out, the result goes to a folder of the cache (DFKD_CACHE) that its content names.
    """

    def __init__(
        self,
        network: "str | Path | nn.Module | Run",
        *,
        normalize: str | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        interpolation: Interpolation | None = None,
        device: str = "auto",
    ) -> None:
        """`network` is an nn.Module, a MODEL text, or a Run, whose student it is then. Raises: RequestError."""
        with opened(verbose=False):
            self._model = _model(network, "teacher")
            expected = network.input if isinstance(network, Run) else {}
            own: dict[str, Any] = {"normalize": normalize, "image_size": image_size}
            own |= {"crop_pct": crop_pct, "interpolation": interpolation}
            own = {name: expected.get(name) if value is None else value for name, value in own.items()}
            self._options = {**own, "device": device}
            ModelConfig(**self._options)
            if isinstance(self._model, str):
                check_name(self._model)

    @with_options("select")
    def select(self, pool: Any, *, out: str | Path | None = None, verbose: bool = True, **options: Any) -> Selection:
        """Select from an unlabeled pool what this teacher can teach from.

        `pool` is a DATA text or several, an array of uint8 images, or a map-style data set of images.
        """
        from dfkd.select.stage import select

        with computing(verbose):
            data = [_data(one, "pool") for one in (pool if isinstance(pool, list) else [pool])]
            own = self._own(out, pool=tuple(map(data_text, data)))
            config = configured(stage := STAGES["select"], options, own)
            if config.part is not None:
                raise RequestError("--part is for commands on several machines: it gives no selection")
            return Selection(stage.within(config, select, config, self._model, data))

    @with_options("generate")
    def generate(
        self, method: str, *, out: str | Path | None = None, verbose: bool = True, **options: Any
    ) -> Selection:
        """Make images from the teacher alone. `student` is as in `distill`; `samples` are selections."""
        from dfkd.generators.stage import generate

        with computing(verbose):
            student = None if options.get("student") is None else _model(options["student"], "student")
            named: dict[str, Any] = {}
            named |= {"samples": _folders(options["samples"])} if options.get("samples") is not None else {}
            named |= {"fill": _folders(options["fill"])[0]} if options.get("fill") is not None else {}
            named |= {"student": model_text(student)} if student is not None else {}
            own = self._own(out, method=expand(method))
            config = configured(stage := STAGES["generate"], {**options, **named}, own)
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
        """Train a student on selections, and measure it on labeled data where `test` is given.

        `student` is a module, which is copied and begins with its own weights (unless init="teacher"), or a MODEL text.
        `samples` are selections or their folders; `test` is DATA as in `select`, an array as a pair (images, labels).
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
        """Measure this classifier on labeled data, and its agreement with a `teacher`. Returns the figures."""
        from dfkd.training.evaluate import evaluate

        with computing(verbose):
            images = _data(data, "data")
            other = None if teacher is None else _model(teacher, "teacher")
            own = {**self._options, "model": model_text(self._model), "data": data_text(images), "json": None}
            own |= {"teacher": None if other is None else model_text(other)}
            config = configured(stage := STAGES["evaluate"], options, own)
            figures: dict[str, Any] = stage.within(config, evaluate, config, self._model, images, other)
            return figures

    def __repr__(self) -> str:
        return f"<dfkd.Teacher {model_text(self._model)}>"

    def _own(self, out: str | Path | None, **found: Any) -> dict[str, Any]:
        """The options that a call has by itself."""
        return {**self._options, "teacher": model_text(self._model), "out": expand(str(out or "")), **found}


def _model(value: Any, option: str) -> GivenModel:
    if isinstance(value, Run):
        return value.model
    return value._model if isinstance(value, Teacher) else network(value, option)


def _data(value: Any, option: str) -> GivenData:
    return str(value.folder) if isinstance(value, Selection) else expand(data_of(value, option))


def _folders(samples: Any) -> list[str]:
    """Selections as their folders."""
    several: Sequence[Any] = samples if isinstance(samples, (list, tuple)) else [samples]
    for one in several:
        if not isinstance(one, (Selection, str, Path)):
            raise RequestError(f"--samples is a {type(one).__name__}, not a selection or its folder")
    return [str(one.folder) if isinstance(one, Selection) else expand(str(one)) for one in several]
