"""Check of a `.pt2` file before `torch.export.load`, which would execute code from the file.

The file is a program of tensor operators. torch's reader unpickles some members without restriction. It evaluates size
expressions as Python, looks up operators by any dotted name in torch, and writes names into the source code of
generated modules. All of these are checked here, and a file with other content is rejected.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dfkd.models.state import tensors_of
from dfkd.system.errors import RequestError, first_line

_QUANTIZED = "quantized_decomposed"
_OPERATORS = re.compile(
    rf"(torch\.ops\.(aten|higher_order|{_QUANTIZED})\.\w+(\.\w+)*|torch\.sym_\w+|_operator\.\w+|math\.\w+)\Z"
)
_FILE_OPERATORS = "torch.ops.aten.from_file"
_NAME = re.compile(r"[\w.\-*]*\Z")
_CALLED = re.compile(
    r"(Symbol|Integer|Float|Rational|Max|Min|Abs|Mod|Pow|Add|Mul|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Piecewise|Where|FloorDiv"
    r"|CeilDiv|CleanDiv|ModularIndexing|PythonMod|IntTrueDiv|FloatTrueDiv|PowByNatural|CeilToInt|FloorToInt|TruncToInt"
    r"|ToFloat|Identity|floor|ceiling)\Z"
)
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.keyword, ast.Name),
    *(ast.Constant, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.Load),
)
_TRAINS = ("train", "training")
_ASSERTION = torch.ops.aten._assert_tensor_metadata.default
_MOST = 10_000
"""Largest length of an expression, in characters."""


def check_program(path: Path) -> None:
    """Check a `.pt2` file, and register the operators that a quantized program names.

    Raises: RequestError for a file that holds anything but tensor operators, or that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            inside = {name.partition("/")[2]: name for name in members}
            models = [name for name in inside if name.startswith("models/")]
            # with two members of one name, or two top folders, torch might read another member than this check
            alike = len(inside) == len(members) and len({name.partition("/")[0] for name in members}) == 1
            if not alike or "archive_format" not in inside or models != ["models/model.json"]:
                raise RequestError(f"{str(path)!r} is not a program of this format; export it again with this torch")
            for name, member in inside.items():
                if name.startswith("data/aotinductor"):
                    raise RequestError(f"{str(path)!r} holds compiled code; export it with torch.export")
                if name.endswith(".json"):
                    check_description(json.loads(archive.read(member)), str(path))
                elif name.endswith((".pt", ".pth", ".pkl")) and not _is_plain(archive.read(member)):
                    raise RequestError(f"{str(path)!r} holds pickled Python objects ({name}), which could run code")
    except RequestError:
        raise
    except Exception as error:  # the zip and JSON readers can raise anything for a damaged file
        raise RequestError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def check_description(value: Any, path: str = "the program") -> None:
    """Check one JSON member of the archive. Raises: RequestError for content that would be executed."""
    for keys, text in _texts(value):
        key = keys[-1] if keys else ""
        if key == "use_pickle" and text:
            raise RequestError(f"{path!r} holds pickled tensors, which could run code; export it again without them")
        if not isinstance(text, str) or "metadata" in keys:
            continue
        if key == "expr_str":
            if not _is_arithmetic(text):
                raise RequestError(f"{path!r} has the size {text[:80]!r}, which is not arithmetic and could run code")
        elif key == "target" and "nodes" in keys:
            if text.startswith(f"torch.ops.{_QUANTIZED}."):
                import torch.ao.quantization.fx._decomposed  # noqa: F401  # the import registers the operators
            if not _OPERATORS.match(text) or text.startswith(_FILE_OPERATORS):
                raise RequestError(f"{path!r} uses {text[:80]!r}; only tensor operators (torch.ops.aten) are run")
        elif key == "path_name":
            if not re.match(r"(weight|tensor)_\d+\Z", text):
                raise RequestError(f"{path!r} holds the object {text[:80]!r}, which could run code")
        elif "graph" in keys and not _NAME.match(text):
            raise RequestError(f"{path!r} has the name {text[:80]!r}, which is not an identifier")


def _texts(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every leaf of a JSON value, and every dictionary key as a name, with the keys that lead there."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while todo:
        keys, one = todo.pop()
        if isinstance(one, dict):
            todo += [((*keys, key), item) for key, item in one.items()]
            yield from (((*keys, "key"), key) for key in one)
        elif isinstance(one, list):
            todo += [(keys, item) for item in one]
        else:
            yield keys, one


def _is_arithmetic(text: str) -> bool:
    """Return whether an expression holds only numbers, plain names, arithmetic and calls of known functions."""
    if len(text) > _MOST:
        return False
    try:
        return all(map(_is_harmless, ast.walk(ast.parse(text.strip(), mode="eval"))))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(_CALLED.match(node.func.id))
    if isinstance(node, ast.Constant):  # the only strings are names of symbols
        return node.value.isidentifier() if isinstance(node.value, str) else isinstance(node.value, (int, float))
    return isinstance(node, _ARITHMETIC)


def _is_plain(data: bytes) -> bool:
    """Return whether `torch.load` can read a pickle with `weights_only`."""
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:  # refused, or damaged
        return False
    return True


class OwnTypes(torch.export.UnflattenedModule):
    """A program with tensors of float16 or bfloat16. It computes in its own number types, without autocast.

    Operators such as batch normalization refuse an input of autocast's type with weights of another.
    """

    def forward(self, *images: Any, **named: Any) -> Any:
        """Run the program."""
        device = next(iter([*images, *named.values()])).device.type
        if not torch.is_autocast_enabled(device):  # a program that is traced for export has no autocast context
            return super().forward(*images, **named)
        with torch.autocast(device, enabled=False):
            return super().forward(*images, **named)


def unflattened(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """Return a program as a module that also runs under autocast. Its modules keep their paths.

    torch writes an assertion before every conversion, such as `.float()`: the tensor has the type that it had during
    the export. Under autocast it has another type. The conversions themselves remain, so the assertions are removed.
    """
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.find_nodes(op="call_function", target=_ASSERTION):
                part.graph.erase_node(node)
            part.recompile()
    module = torch.export.unflatten(program)
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in tensors_of(module).values()):
        module.__class__ = OwnTypes
    return module


def check_evaluates(program: torch.export.ExportedProgram, path: Path) -> None:
    """Raise RequestError for a program that was exported in training mode, where outputs differ."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        given = [argument.name for argument in schema.arguments] if schema else []
        values = dict(zip(given, node.args, strict=False)) | node.kwargs
        # a BatchNorm without running statistics uses the batch's, in evaluation mode too
        norm = "running_mean" in given
        if (norm and values["running_mean"] is None) or not any(values.get(key) is True for key in _TRAINS):
            continue
        what = str(node.target).removeprefix("aten.").partition(".")[0]
        raise RequestError(f"{str(path)!r} was exported in training mode ({what}): call .eval() before exporting")
