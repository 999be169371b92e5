"""Read the declared argument types of the classes and functions that a configuration names.

Sources are parsed instead of imported, so that a wrong setting is reported before PyTorch is imported.
"""

import ast
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from mergeability import checks
from mergeability.checks import Bounds, OnePart, is_path_part
from mergeability.members import located, parsed

OWN = "mergeability."


class RefusedError(ValueError):
    """Signal that a value does not have its annotated type.

    Attributes:
        entry: entry of names and values, the name that is to blame, what it was to be, and its value.
    """

    def __init__(self, entry: tuple[str, ast.expr, Any] | None = None) -> None:
        super().__init__("none of what is allowed")
        self.entry = entry


@dataclass(frozen=True)
class Signature:
    """Hold the annotations of arguments by name; `open` states whether further arguments are accepted."""

    arguments: Mapping[str, ast.expr]
    open: bool = False


@cache
def signature(target: str) -> Signature | None:
    """Return the arguments of a function or class, given its dotted name; None if the name is outside this package."""
    found = located(target) if target.startswith(OWN) else None
    if found is None:
        return None
    node, source = found
    return _of_function(node, source) if isinstance(node, ast.FunctionDef) else _of_class(node, source)


@cache
def foreign_signature(package: str, file: str, name: str) -> Signature | None:
    """Return the arguments of a class in another package; the source of the package is parsed, not imported."""
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        return None
    found = [one for one in parsed(path).body if isinstance(one, ast.ClassDef) and one.name == name]
    return _of_class(found[0], path) if found else None


def _of_function(node: ast.FunctionDef, source: Path) -> Signature:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    found = {one.arg: one.annotation or ast.Name("Any") for one in arguments if one.arg != "self"}
    return Signature(
        {name: _meant(annotation, source) for name, annotation in found.items()},
        open=node.args.kwarg is not None,
    )


def _meant(annotation: ast.expr, source: Path) -> ast.expr:
    """Replace a name that a file gives to literals, such as `Kind = Literal["hub", "disk"]`, by these."""
    found = {
        one.targets[0].id: one.value
        for one in parsed(source).body
        if isinstance(one, ast.Assign)
        and isinstance(one.targets[0], ast.Name)
        and isinstance(one.value, ast.Subscript)
        and isinstance(one.value.value, ast.Name)
        and one.value.value.id == "Literal"
    }
    for one in parsed(source).body:
        if isinstance(one, ast.ImportFrom) and one.module and one.module.startswith(OWN):
            names = {alias.name for alias in one.names}
            spec = find_spec(one.module) if names & _named(annotation) else None
            if spec is not None and spec.origin and Path(spec.origin) != source:
                for name in names & _named(annotation):
                    meant = _meant(ast.Name(name), Path(spec.origin))
                    found |= {} if isinstance(meant, ast.Name) else {name: meant}
    return _Replaced(found).visit(copy.deepcopy(annotation)) if found else annotation


def _named(annotation: ast.expr) -> set[str]:
    return {one.id for one in ast.walk(annotation) if isinstance(one, ast.Name)}


class _Replaced(ast.NodeTransformer):
    """Replace names by expressions."""

    def __init__(self, meanings: Mapping[str, ast.expr]) -> None:
        self._meanings = meanings

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._meanings.get(node.id, node)


def _of_class(node: ast.ClassDef, source: Path) -> Signature:
    """Take `__init__` where a class has one, and the fields of a dataclass and its bases otherwise."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return _of_function(one, source)
    arguments: dict[str, ast.expr] = {}
    for base in node.bases:
        inherited = _base(ast.unparse(base), source)
        arguments |= inherited.arguments if inherited else {}
    for one in node.body:
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and not ast.unparse(one.annotation).startswith("ClassVar")
        ):
            arguments[one.target.id] = _meant(one.annotation, source)
    return Signature(arguments)


def _base(name: str, source: Path) -> Signature | None:
    """Find a base class: in the same file, or imported from another one of the package."""
    for one in parsed(source).body:
        if isinstance(one, ast.ClassDef) and one.name == name:
            return _of_class(one, source)
        if isinstance(one, ast.ImportFrom) and one.module and any(name == alias.name for alias in one.names):
            return signature(f"{one.module}.{name}")
    return None


def take(annotation: ast.expr, value: Any) -> Any:
    """Convert a value to its annotated type; a number becomes text if text is expected.

    Raises:
        RefusedError: the annotation does not allow the value.
    """
    entry = None
    for alternative in _alternatives(annotation):
        try:
            return _take(alternative, value)
        except RefusedError as error:
            entry = error.entry or entry
    raise RefusedError(entry)


def words(annotation: ast.expr) -> str:
    """Describe the values that an annotation allows.

    >>> words(ast.parse("int | Sequence[str] | None", mode="eval").body)
    'a whole number, a list of text or null'
    """
    found = list(dict.fromkeys(_words(one) for one in _alternatives(annotation)))
    if "a number" in found:
        found = [one for one in found if one != "a whole number"]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return [*_alternatives(left), *_alternatives(right)]
        case ast.Constant(value=str() as text):
            return _alternatives(ast.parse(text, mode="eval").body)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return [*_alternatives(inner), ast.Constant(None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return [one for part in parts for one in _alternatives(part)]
    return [annotation]


def _declared(name: str) -> tuple[str, Any] | None:
    """Return the type and the condition of a name that `checks` declares."""
    found = get_args(getattr(checks, name, None))
    return (getattr(found[0], "__name__", "float"), found[1]) if found else None


def _take(annotation: ast.expr, value: Any) -> Any:
    match annotation:
        case ast.Constant(value=None):
            if value is None:
                return value
            raise RefusedError
        case ast.Name(id=name) if (declared := _declared(name)) is not None:
            kind, condition = declared
            found = _scalar(kind, value, infinite=True)
            if not (condition.admits(found) if isinstance(condition, Bounds) else is_path_part(found)):
                raise RefusedError
            return found
        case ast.Name(id="Any" | "object"):
            return value
        case ast.Name(id="Path"):
            return _scalar("str", value)
        case ast.Name(id=name) if name in ("int", "float", "str", "bool"):
            return _scalar(name, value)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            found = [ast.literal_eval(one) for one in _elements(options)]
            for option in found:
                # Hydra parses nan as a number and true as a boolean, so neither can be text here.
                if option == value or (isinstance(option, str) and option == _typed(value)):
                    return option
            raise RefusedError
        case ast.Subscript(value=ast.Name(id="Sequence" | "list" | "List" | "tuple" | "Tuple"), slice=inner):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise RefusedError
            return [take(_elements(inner)[0], one) for one in value]
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict" | "Dict"), slice=inner):
            if not isinstance(value, Mapping):
                raise RefusedError
            return {str(name): _entry(str(name), _elements(inner)[1], one) for name, one in value.items()}
        case ast.Name(id="dict" | "Mapping"):
            if isinstance(value, Mapping):
                return value
            raise RefusedError
    # A class or a function: the configuration describes it by a node.
    if isinstance(value, Mapping) and "_target_" in value:
        return value
    raise RefusedError


def _entry(name: str, annotation: ast.expr, value: Any) -> Any:
    try:
        return take(annotation, value)
    except RefusedError as error:
        raise RefusedError((name, annotation, value)) from error


def _elements(inner: ast.expr) -> list[ast.expr]:
    return list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]


def _options(inner: ast.expr) -> list[str]:
    return [str(ast.literal_eval(one)) for one in _elements(inner)]


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | float) else str(value)


def _scalar(kind: str, value: Any, infinite: bool = False) -> Any:
    if kind == "str":
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool):
        raise RefusedError
    elif isinstance(value, int) or (
        kind != "int" and isinstance(value, float) and (math.isfinite(value) or (infinite and value == value))
    ):
        return value
    raise RefusedError


def _words(annotation: ast.expr) -> str:
    match annotation:
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if (declared := _declared(name)) is not None:
            kind, condition = declared
            if isinstance(condition, OnePart):
                return "the name of one file or folder, without / and \\"
            noun = (
                "a whole number" if kind == "int" else "a finite number" if condition.high > 1 else "a number"
            )
            if condition.above:
                return f"{noun} above {condition.low:g}"
            if condition.high >= 2**31 - 1:
                return noun if condition.low < 0 else f"{noun} of at least {condition.low:g}"
            return f"{noun} from {condition.low:g} to {condition.high:g}"
        case ast.Name(id=name):
            named = {
                **{"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"},
                **{"Path": "text", "Mapping": "names and values, in {}", "dict": "names and values, in {}"},
            }
            return named.get(name, "a node with a _target_")
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            return " or ".join(", ".join(_options(options)).rsplit(", ", 1))
        case ast.Subscript(value=ast.Name(id="Sequence" | "list" | "List" | "tuple" | "Tuple"), slice=inner):
            return f"a list of {words(_elements(inner)[0]).replace('a number', 'numbers')}"
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict" | "Dict")):
            return "names and values, in {}"
    return "a node with a _target_"
