"""Several teachers as one classifier: `--teacher A B C`, or a FILE.toml with a `[[teacher]]` table for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dfkd.config.stages.shared import AS_STATED, Input, Mixing
from dfkd.config.tables import from_mapping, load_toml
from dfkd.data.labels import ClassNames
from dfkd.models import find
from dfkd.models.ensemble import LEARNED, LOGITS, Ensemble, Part
from dfkd.models.load import Model, load_trained
from dfkd.models.own import GivenModel, OneTeacher, Several
from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest
from dfkd.system.files import hash_of, user_path
from dfkd.system.names import Named, convert

FILE = ".toml"
_TABLE, _WAY = "teacher", "mixing"
_MOST = 1_000_000
_SAYS = f"a FILE{FILE} with a [[{_TABLE}]] table for each says so: classes = FILE"


def given_teacher(teacher: str | tuple[str, ...], mixing: Mixing | None) -> GivenModel:
    """Return what `--teacher` and `--mixing` name: a MODEL, or several teachers."""
    if isinstance(teacher, tuple) and len(teacher) > 1:
        return Several(tuple(OneTeacher(model) for model in teacher), mixing)
    model = teacher if isinstance(teacher, str) else teacher[0]
    if names_several(model):
        several = read(model)
        return several if mixing is None else replace(several, mixing=mixing)
    if mixing is not None:
        say(f"note: --mixing {mixing} changes nothing with one teacher")
    return model


def names_several(model: GivenModel) -> bool:
    """Return whether a text names a file of several teachers."""
    return isinstance(model, str) and model.endswith(FILE) and "@" not in model


def learns_weights(teacher: GivenModel) -> bool:
    """Return whether teachers are weighted by what they answer to images."""
    several = _several(teacher)
    return several is not None and several.mixing == LEARNED


def _several(given: GivenModel) -> Several | None:
    """Return several teachers as given or as a file names them; None for a single model."""
    if isinstance(given, Several):
        return given
    return read(given) if isinstance(given, str) and names_several(given) else None


def read(text: str) -> Several:
    """Read the teachers of a file. Raises: RequestError for invalid content, with the table's name."""
    tables = load_toml(user_path(text))
    for key in tables:
        if key not in (_TABLE, _WAY):
            raise RequestError(f"{text} has {key!r}{nearest(key, (_TABLE, _WAY))}")
    listed = tables.get(_TABLE)
    if not isinstance(listed, list) or len(listed) < 2 or not all(isinstance(one, dict) for one in listed):
        raise RequestError(f"{text} does not name several teachers; write two or more [[{_TABLE}]] tables")
    mixing = convert(tables.get(_WAY, LOGITS), Mixing, f"{text}: {_WAY}")
    teachers = [from_mapping(OneTeacher, one, f"{text} [[{_TABLE}]] {n}") for n, one in enumerate(listed, 1)]
    return Several(tuple(teachers), mixing)


def check_there(text: str) -> None:
    """Raise RequestError if a MODEL, or one of the teachers of a file, is unknown or names a file that is missing."""
    for model in [one.model for one in read(text).teachers] if names_several(text) else [text]:
        if isinstance(model, str):
            find.check_there(model)


def load_classifier(
    given: GivenModel, input: Input = AS_STATED, option: str = "--teacher", *, learns: bool = False
) -> Model:
    """Load a trained model, or several teachers as one, which take the input of the first.

    `learns` tells whether the caller has images from which weights are learned, if the mixing is `learned`. `input` is
    that of the first teacher. Another teacher uses its table's, else what its model states, else the first teacher's.
    Raises: RequestError as `load_trained` does, and if the teachers cannot be combined.
    """
    several = _several(given)
    if several is None:
        return load_trained(given, input, option)
    if several.mixing == LEARNED and not learns:
        raise RequestError(
            f"{option}: --mixing learned needs images to learn weights on, and there are none here; it is for distill "
            "and generate with --samples; elsewhere give mean-probabilities"
        )
    for one in several.teachers:
        if names_several(one.model):
            raise RequestError(
                f"{option}: {one.model} names several teachers itself; name it alone, or each of its teachers"
            )
    head = several.teachers[0]
    first = load_trained(head.model, input.over(head.input), option)
    models = [first]
    for one in several.teachers[1:]:
        models.append(load_trained(one.model, one.input, option, unsaid=first.normalize))
        if models[-1].channels != first.channels:
            raise RequestError(
                f"{option}: {models[-1].spec} takes {models[-1].channels} input channels, {first.spec} takes "
                f"{first.channels}; several teachers see the same images"
            )
    return _together(several, models, option)


@dataclass(frozen=True)
class _Member:
    """One of several teachers: its table, its network, and the names of its classes, or their numbers."""

    table: OneTeacher
    model: Model
    names: Sequence[str | int]
    other: int | None
    """Index of the class for everything else."""

    @property
    def known(self) -> list[str | int]:
        """Names without that of the class for everything else."""
        return [name for number, name in enumerate(self.names) if number != self.other]


def _together(several: Several, models: Sequence[Model], option: str) -> Model:
    """Combine the loaded models into an ensemble."""
    first, mixing = models[0], several.mixing or LOGITS
    named = zip(several.teachers, models, _class_names(several.teachers, models, option), strict=True)
    members = [_Member(table, model, names, _other(table, names, model)) for table, model, names in named]
    union = list(dict.fromkeys(name for member in members for name in member.known))
    numbers = {name: number for number, name in enumerate(union)}
    parts = [_part(member, first, numbers) for member in members]
    if len(union) < 2:
        raise RequestError(f"{option}: the teachers have {len(union)} class together; two or more are needed")
    _say_classes(parts, len(union), mixing)
    described = [_described(model, part) for model, part in zip(models, parts, strict=True)]
    layout = [[*part.classes, part.other, part.weight, sorted(part.class_weights.items())] for part in parts]
    return replace(
        first,
        spec=" + ".join(model.spec for model in models),
        architecture=str(Named("ensemble", {"mixing": mixing, "of": described})),
        module=Ensemble(parts, len(union), mixing).eval(),
        classes=len(union),
        code=hash_of([[model.code for model in models], layout]),
        has_weights=True,
        may_bring_weights=False,
        class_names=tuple(map(str, union)) if any(isinstance(name, str) for name in union) else (),
        new_layers=(),
    )


def _class_names(teachers: Sequence[OneTeacher], models: Sequence[Model], option: str) -> list[Sequence[str | int]]:
    """Return each teacher's class names. Without names, a teacher gets another's, or numbers if nobody has names."""
    named: list[Sequence[str | int]] = []
    for one, model in zip(teachers, models, strict=True):
        names: Sequence[str | int] = model.class_names
        if isinstance(one.classes, str):
            listed = ClassNames(one.classes, "classes = ")
            listed.check(model.classes)
            names = listed.names
        elif one.classes is not None:
            names = one.classes
        if names and len(names) != model.classes:
            raise RequestError(f"{option}: {len(names)} classes are named for {model.spec}, which has {model.classes}")
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RequestError(f"{option}: {model.spec} has two classes called {twice!r}; give each a name of its own")
        named.append(names)
    nameless = [model.spec for names, model in zip(named, models, strict=True) if not names]
    if nameless and len({model.classes for model in models}) > 1:
        counts = ", ".join(str(model.classes) for model in models)
        raise RequestError(f"{option}: teachers of {counts} classes, and nothing names those of {nameless[0]}; {_SAYS}")
    known = next((names for names in named if names), range(models[0].classes))
    if nameless and len(nameless) < len(models):
        say(f"note: nothing names the classes of {', '.join(nameless)}: they are taken for those of the other teachers")
    return [names or known for names in named]


def _other(one: OneTeacher, names: Sequence[str | int], model: Model) -> int | None:
    """Return the index of the teacher's class for everything else."""
    if one.other is None:
        return None
    if one.other not in names:
        raise RequestError(f"{model.spec} has no class other = {one.other!r}{nearest(one.other, map(str, names))}")
    return list(names).index(one.other)


def _part(member: _Member, first: Model, numbers: Mapping[str | int, int]) -> Part:
    """Return one teacher as a part of the ensemble, which gets the first teacher's input.

    `numbers` are those of the ensemble's classes by name.
    """
    table, model = member.table, member.model
    by_class = table.class_weights or {}
    if not isinstance(by_class, Mapping):
        raise RequestError(f"class_weights of {model.spec} is not a table of names and numbers")
    for name in by_class:
        if name not in member.known:
            raise RequestError(f"{model.spec} has no class {name!r} to weigh{nearest(name, map(str, member.names))}")
    factors = {numbers[name]: _weight(factor, model) for name, factor in by_class.items()}
    ours, theirs = first.preprocess, model.preprocess
    scale = tuple(a / b for a, b in zip(ours.std, theirs.std, strict=True))
    shift = tuple((a - b) / c for a, b, c in zip(ours.mean, theirs.mean, theirs.std, strict=True))
    return Part(
        model.module,
        [numbers.get(name, 0) for name in member.names],
        None if model is first else _own_size(table, model, first),
        None if ours == theirs else scale,
        None if ours == theirs else shift,
        _weight(table.weight, model),
        factors,
        member.other,
    )


def _own_size(one: OneTeacher, model: Model, first: Model) -> int | None:
    """Return the side to which a teacher's images are resized; None if they are not resized.

    They are not resized if the teacher takes the first one's size, or any small size.
    """
    if one.image_size is not None:
        return one.image_size
    as_they_come = model.takes_any_size and not first.of_photographs
    return None if as_they_come or model.made_for == first.made_for else model.made_for


def _weight(value: object, model: Model) -> float:
    if not isinstance(value, (int, float)) or not 0 < value < _MOST:
        raise RequestError(f"the weight {value} of {model.spec} is not a number above 0 and below {_MOST}")
    return float(value)


def _described(model: Model, part: Part) -> str:
    size = "" if part.size is None else f" at {part.size} pixels"
    return f"{model.architecture} ({model.normalize}{size})"


def _say_classes(parts: Sequence[Part], classes: int, mixing: Mixing) -> None:
    """Print the classes of the ensemble, and what a way of mixing cannot tell."""
    counts = [len(part.classes) - (part.other is not None) for part in parts]
    say(f"{len(parts)} teachers of {', '.join(map(str, counts))} classes as one of {classes}, mixing {mixing}")
    apart, linked = [{*part.classes} for part in parts], {*parts[0].classes}
    while joined := [one for one in apart if one & linked]:
        apart = [one for one in apart if not one & linked]
        linked = linked.union(*joined)
    if apart and mixing == "mean-probabilities" and not any(part.other is not None for part in parts):
        say(
            "note: some teachers have no class in common with others: their probabilities do not tell which of them "
            "knows an image; --mixing mean-logits, confidence or entropy do"
        )
