"""Table of all stages, which the command line, pipelines and the Python interface share."""

import importlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from dfkd.config import (
    CompareConfig,
    DemoConfig,
    DistillConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    GenerateConfig,
    InspectConfig,
    RunConfig,
    SelectConfig,
)
from dfkd.config.option import Reads, options
from dfkd.system.errors import RequestError
from dfkd.system.files import local_copy, partial_folder
from dfkd.system.foreign import COMMAND, Foreign
from dfkd.system.locks import is_held
from dfkd.system.portable import spelled_as
from dfkd.system.remote import is_remote
from dfkd.system.remote_folder import sent

_TEACHER = "dfkd {} --teacher my_nets.make_net@teacher.pt"


@dataclass(frozen=True)
class Stage:
    """One stage: its options, its function, its inputs and its outputs."""

    name: str
    options: type
    """Class of the stage's configuration."""
    target: str
    """`module:function` that runs the stage.

    The module is imported when the stage runs, because the import takes seconds. The module's function `check`, if
    there is one, refuses wrong requests before any file is opened.
    """
    example: str = ""
    """Example command for the stage's help."""
    writes: Literal["selection", "run"] | None = None
    """Kind of folder that the option `out` names, or None for other output."""
    alone: str | None = "start it without torchrun"
    """Advice for users who start the stage in several processes with torchrun. None if the stage supports that."""

    def run(self, config: Any) -> Any:
        """Run the stage with the configuration `config`, and return its result."""
        return self.within(config, self._function(self.target.partition(":")[2]), config)

    def within(self, config: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the stage. Stored texts keep the `~` and `$NAME` of `config`."""
        with spelled_as(vars(config)), Foreign(COMMAND), self._sent(config):
            return function(*arguments)

    def _sent(self, config: Any) -> AbstractContextManager[None]:
        """Return a context that fetches an `--out` in an object store at its start, and sends the result at its end."""
        out = getattr(config, "out", None)
        if not isinstance(out, str) or not is_remote(out):
            return nullcontext()
        if self.writes is None:
            raise RequestError(f"--out {out} is in an object store, and dfkd {self.name} writes to this machine")
        return sent(out, self.writes)

    def check(self, config: Any) -> None:
        """Raise RequestError if the configuration is wrong in a way that shows before any file is opened."""
        if check := self._function("check"):
            with spelled_as(vars(config)), Foreign(COMMAND):
                check(config)

    def reads(self, config: Any, kind: Reads | None = None) -> list[str]:
        """Return the texts of the models, data and selections that the stage opens, or of one `kind` of these."""
        read = {name: option.reads for name, option in options(self.options).items() if option.reads}
        named = [getattr(config, name) or () for name, what in read.items() if kind in (None, what)]
        return [text for given in named for text in ((given,) if isinstance(given, str) else given)]

    def lock(self, config: Any) -> Path:
        """Return the folder that is locked while the stage runs.

        For a selection, this is the temporary folder. A run is written under its final name.
        """
        out = local_copy(config.out) if is_remote(config.out) else Path(config.out).resolve()
        return partial_folder(out) if self.writes == "selection" else out

    def is_held(self, config: Any) -> bool:
        """Return whether another command is writing the stage's output."""
        return is_held(self.lock(config))

    def _function(self, name: str) -> Any:
        return getattr(importlib.import_module(self.target.partition(":")[0]), name, None)


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        stage.name: stage
        for stage in (
            Stage(
                "select",
                SelectConfig,
                "dfkd.select.stage:run",
                f"{_TEACHER.format('select')} --pool photos/ --out selection",
                "selection",
                "give --part K/N to N commands, which share the scoring, and then one command without --part",
            ),
            Stage(
                "generate",
                GenerateConfig,
                "dfkd.generators.stage:run",
                f"{_TEACHER.format('generate')} --method deepinversion --out made",
                "selection",
                None,
            ),
            Stage(
                "distill",
                DistillConfig,
                "dfkd.distill.stage:run",
                f"{_TEACHER.format('distill')} --student resnet18_small --samples selection --out run",
                "run",
                None,
            ),
            Stage(
                "evaluate",
                EvaluateConfig,
                "dfkd.training.evaluate:run",
                "dfkd evaluate --model run --data labeled/",
            ),
            Stage(
                "explain",
                ExplainConfig,
                "dfkd.report.explanation:run",
                "dfkd explain --model run --out explained.html",
            ),
            Stage(
                "inspect",
                InspectConfig,
                "dfkd.report.inspection:run",
                "dfkd inspect selection --out selection.html",
            ),
            Stage(
                "compare",
                CompareConfig,
                "dfkd.report.compare:run",
                "dfkd compare run other-run --out report.html",
            ),
            Stage("export", ExportConfig, "dfkd.models.export:run", "dfkd export --model run --out student.onnx"),
            Stage(
                "run",
                RunConfig,
                "dfkd.app.pipeline:run",
                "dfkd run pipelines/quick.toml",
                alone="give the command several times without torchrun: they share the work",
            ),
            Stage("demo", DemoConfig, "dfkd.app.demo:run", "dfkd demo --out demo"),
        )
    }
)


def stage_of(config: Any) -> Stage:
    """Return the stage of a configuration."""
    return next(stage for stage in STAGES.values() if stage.options is type(config))


def as_parameters(text: str) -> str:
    """Return a message with options written as Python parameters, such as `image_size` for `--image-size`.

    Commands in the message stay unchanged.
    """
    known = {name for stage in STAGES.values() for name in options(stage.options)}

    def parameter(found: "re.Match[str]") -> str:
        name = found[2].replace("-", "_")
        if name not in known:
            return found[0]
        return f"{name}=False" if found[1] else name

    pieces = re.split(rf"(dfkd (?:{'|'.join(STAGES)}) (?!command)[^;,]*)", text)
    pieces[::2] = [re.sub(r"(?<![\w-])--(no-)?([a-z][a-z0-9-]*)", parameter, piece) for piece in pieces[::2]]
    return "".join(pieces)
