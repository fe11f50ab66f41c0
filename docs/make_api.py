"""docs/api.md: the public classes and functions, from their signatures and docstrings.

    python docs/make_api.py

It reads the source and imports nothing. `PUBLIC` lists what is public; tests/test_docstrings.py checks its docstrings.
"""

import ast
import inspect
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "api.md"
PUBLIC = {
    "dfkd": (
        "`import dfkd` has these names. [python.md](python.md) shows how they are used.",
        {
            "dfkd/app/teacher.py": ["Teacher"],
            "dfkd/app/results.py": ["Selection", "Run", "open_selection", "open_run", "compare"],
            "dfkd/system/errors.py": ["RequestError"],
        },
    ),
    "A loss of your own": (
        "[own.md](own.md#a-loss) has an example. [losses.md](losses.md) has the losses that come with `dfkd`.",
        {
            "dfkd/distill/loss.py": ["Loss"],
            "dfkd/models/features/outputs.py": ["Outputs"],
            "dfkd/distill/setting.py": ["Setting"],
            "dfkd/distill/align.py": ["same_size", "averaged", "projection", "apply", "full"],
        },
    ),
    "A selection method of your own": (
        "[own.md](own.md#a-selection-method) has an example.",
        {
            "dfkd/select/methods.py": [
                *("ImageScores", "Ranking", "Traits", "Scale"),
                *("threshold", "statistics", "confidence", "entropy", "random"),
            ],
            "dfkd/system/limits.py": ["Range"],
        },
    ),
    "A generator of your own": (
        "[own.md](own.md#a-generator) has an example. [generators.md](generators.md) has those that come with `dfkd`.",
        {
            "dfkd/generators/base.py": ["Task", "Method"],
            "dfkd/generators/generator.py": ["GeneratorMethod"],
            "dfkd/generators/terms.py": [
                *("one_hot", "activation", "class_entropy", "logit_difference", "divergence", "between", "adversarial"),
            ],
        },
    ),
    "A filter, an order of batches": (
        "[own.md](own.md#a-filter-an-order-of-batches) says what they are for.",
        {
            "dfkd/data/images/filter.py": ["Filter"],
            "dfkd/select/filters.py": ["Traits"],
            "dfkd/training/sampling.py": ["Stored", "Order", "Following"],
        },
    ),
}
INTRO = """# Python API

Written by `python docs/make_api.py` from the docstrings; edit those.

Names with `dfkd.` and no further dot are the interface of notebooks and scripts. The others are for parts of your own.
Shapes are in square brackets. [options.md](options.md) lists the options, which are keywords in Python.
"""
LOSSES = ("### dfkd.losses", "dfkd/distill/alone.py", "Each loss of [losses.md](losses.md), and `Outputs`.")
WIDEST = 100
"""Characters of a signature in one line."""


def page():
    """The whole page."""
    parts = [INTRO]
    for title, (words, files) in PUBLIC.items():
        parts += [f"## {title}\n", f"{words}\n"]
        for file, names in files.items():
            parts += [_entry(file, name, title == "dfkd") for name in names]
        if title == "dfkd":
            heading, file, said = LOSSES
            parts += [f"{heading}\n", f"{said}\n", f"{_markdown(ast.get_docstring(_parsed(file)))}\n"]
    return "\n".join(parts)


def public():
    """(file, dotted name, node, class that holds it) of every public class, function, method and property."""
    for _, files in PUBLIC.values():
        for file, names in files.items():
            for name in names:
                node = _named(_parsed(file), name)
                yield file, name, node, None
                for method in _methods(node) if isinstance(node, ast.ClassDef) else ():
                    yield file, f"{name}.{method.name}", method, node


def parameters(node):
    """The arguments of a function, or of a class's constructor, without self."""
    function = _constructor(node) if isinstance(node, ast.ClassDef) else node
    if function is None:
        return []
    found = [*function.args.args, *function.args.kwonlyargs]
    return [argument for argument in found if argument.arg not in ("self", "cls")]


def attributes(node):
    """(name, text) of a class's public attributes that have a text behind them, as they stand."""
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = text.value.value if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) else None
            if not field.target.id.startswith("_"):
                yield ast.unparse(field), inspect.cleandoc(said) if said else None


def _parsed(file):
    return ast.parse((HERE.parent / file).read_text(encoding="utf-8"))


def _named(tree, name):
    return next(node for node in tree.body if getattr(node, "name", None) == name)


def _methods(node):
    return [f for f in node.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]


def _constructor(node):
    return next((f for f in node.body if getattr(f, "name", None) == "__init__"), None)


def _entry(file, name, of_package):
    """A class with its methods, or a function."""
    node = _named(_parsed(file), name)
    dotted = f"dfkd.{name}" if of_package else f"{file.removesuffix('.py').replace('/', '.')}.{name}"
    lines = [f"### {dotted}\n", _signature(name, node), f"{_markdown(ast.get_docstring(node))}\n"]
    if isinstance(node, ast.ClassDef):
        fields = [f"- `{text}`: {_line(said)}" for text, said in attributes(node) if said]
        lines += [f"{_block('Attributes', fields)}\n"] if fields else []
        for method in _methods(node):
            lines += [f"#### {name}.{method.name}\n", _signature(f"{name}.{method.name}", method)]
            lines += [f"{_markdown(ast.get_docstring(method))}\n", *_options(method)]
    return "\n".join(line for line in lines if line)


def _signature(name, node):
    """The call in a code block, one parameter a line where it is long. Nothing for a property."""
    if isinstance(node, ast.ClassDef):
        function = _constructor(node)
        returns = ""
    else:
        function = node
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            return f"    {name}{returns.replace(' -> ', ': ')}\n"
    if function is None:
        return ""
    given = _arguments(function.args)
    call = f"{name}({', '.join(given)}){returns}"
    if len(call) > WIDEST:
        inside = "".join(f"        {part},\n" for part in given)
        call = f"{name}(\n{inside}    ){returns}"
    return f"    {call}\n"


def _arguments(args):
    """Parameters with annotations and defaults, as the formatter writes them; without self."""
    defaults = [None] * (len(args.args) - len(args.defaults)) + args.defaults
    placed = [_argument(*pair) for pair in zip(args.args, defaults, strict=True) if pair[0].arg != "self"]
    named = [_argument(*pair) for pair in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    stars = [f"*{_argument(args.vararg)}"] if args.vararg else ["*"] * bool(named)
    return [*placed, *stars, *named, *([f"**{_argument(args.kwarg)}"] if args.kwarg else [])]


def _argument(argument, default=None):
    kind = argument.annotation
    said = kind.value if isinstance(kind, ast.Constant) else ast.unparse(kind) if kind else ""
    value = "" if default is None else f"{' = ' if said else '='}{ast.unparse(default)}"
    return f"{argument.arg}{': ' if said else ''}{said}{value}"


def _options(method):
    """A link to the options of the stage that a method of Teacher takes as keywords."""
    calls = [d for d in method.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func) == "with_options"]
    stages = [call.args[0].value for call in calls]
    return [f"Other keywords: the options of [dfkd {stage}](options.md#dfkd-{stage}).\n" for stage in stages]


def _markdown(text):
    """A docstring: its sections Args, Returns, Raises and Example as Markdown, all else as it is."""
    out = []
    for part in re.split(r"\n(?=(?:Args|Returns|Raises|Example):\n)", text):
        head, _, rest = part.partition(":\n")
        body = inspect.cleandoc(rest)
        if head in ("Args", "Raises"):
            items = re.split(r"\n(?=\S)", body)
            out.append(
                _block(head, [f"- `{item.partition(':')[0]}`:{_line(item.partition(':')[2])}" for item in items])
            )
        elif head == "Returns":
            out.append(f"**Returns:** {_line(body)}")
        elif head == "Example":
            out.append("**Example**\n\n" + "\n".join(f"    {line}".rstrip() for line in body.splitlines()))
        else:
            out.append(part.strip("\n"))
    return "\n\n".join(out)


def _block(title, items):
    return "\n".join([f"**{title}**", "", *items])


def _line(text):
    return re.sub(r"\s*\n\s*", " ", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
