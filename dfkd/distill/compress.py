"""Compression of a student before its training: fewer channels, or layers that compute in int8."""

from dataclasses import replace

from dfkd.config import DistillConfig
from dfkd.models.architectures.estimator import Estimator
from dfkd.models.architectures.specialists import Specialists
from dfkd.models.fake_int8 import fake_int8, rounds
from dfkd.models.find import OBJECT
from dfkd.models.load import Model
from dfkd.models.prune import Pruned, check_installed, prune
from dfkd.system.errors import RequestError
from dfkd.system.names import Named


def check(config: DistillConfig) -> None:
    """Raise RequestError for options that can be refused before anything is opened."""
    if config.prune is not None:
        check_installed()
    for option in _options(config):
        if config.init == "teacher":
            raise RequestError(f"{option} keeps the student's own weights; leave out --init teacher")


def compressed(config: DistillConfig, student: Model) -> tuple[Model, Pruned | None]:
    """Return the student, pruned or quantized if the options say so, and how it was pruned.

    Raises: RequestError for a student without weights, or one that cannot be changed.
    """
    pruned = None
    if config.prune is not None:
        _check_whole(f"--prune {config.prune:g}", student)
    for option in _options(config):
        check_student(option, student)
    if config.prune is not None:
        pruned = prune(student, config.prune)
        student = pruned.model
    return student if config.quantize is None else _quantized(student), pruned


def check_student(option: str, student: Model) -> None:
    """Raise RequestError unless a student has weights, learns by gradients, and has a text that builds other forms.

    Weights are checked last: they do not help a student for which the option cannot be used.
    """
    if student.architecture.startswith(OBJECT):
        raise RequestError(f"{option} needs a student that is named by a MODEL text, not a module")
    if isinstance(student.module, Estimator):
        raise RequestError(
            f"{option} needs a student that learns by gradients, and {student.spec} does not; leave it out"
        )
    if student.has_weights is False:
        raise RequestError(f"{option} needs a student with weights; write --student {student.spec}@WEIGHTS")


def _check_whole(option: str, student: Model) -> None:
    """Raise RequestError for a student whose parts or layers are no longer those that pruning knows."""
    kind = "specialists" if isinstance(student.module, Specialists) else "int8 layers" if rounds(student.module) else ""
    if kind:
        raise RequestError(
            f"{option} needs one network in float32, and {student.spec} has {kind}; prune first, then give "
            "--specialists or --quantize"
        )


def _options(config: DistillConfig) -> list[str]:
    given = {"--prune": config.prune, "--quantize": config.quantize}
    return [f"{name} {value}" for name, value in given.items() if value is not None]


def _quantized(student: Model) -> Model:
    """Return the student with layers for quantization-aware training."""
    options = {
        "network": student.architecture,
        "channels": student.channels,
        "image_size": student.trial_size,
    }
    try:
        module = fake_int8(student.module, student.channels, student.trial_size)
    except ValueError as error:
        raise RequestError(f"--quantize int8: {student.spec}: {error}") from None
    return replace(
        student, spec=f"{student.spec} in int8", architecture=str(Named("quantized", options)), module=module.eval()
    )
