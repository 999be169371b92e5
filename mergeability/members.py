"""Read the names, options and declared traits of the members of each group in `conf`.

A member, such as a metric or a merge method, is a YAML file with a `_target_`; any other file of its folder is a set
of members, such as `paper`. A new member is thus available as soon as its file exists: in the sets `all` and
`data_free`, in messages and in tests.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import yaml

from mergeability.errors import UserError

# The C parser reads forty files in 5 ms, ten times faster than the Python parser.
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Reads numbers as Hydra does: to YAML 1.1, 1e-3 without a point is text. Dates stay text."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in _Base.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
# The members of version 0.1.0 beyond the set `paper`, which come right after it: the order of columns in tables is part
# of what is published. Later members follow, sorted by name, so nothing is to be added here.
_PUBLISHED_ORDER = {
    "merge": ("iso_cts", "consensus_ta", "breadcrumbs", "slerp", "fisher", "regmean"),
    "metric": (
        "subspace_overlap_excess",
        "right_subspace_overlap_top_k_excess",
        "right_subspace_overlap_bottom_k_excess",
        "interaction_matrix_overlap_top_k_excess",
        "interaction_matrix_overlap_bottom_k_excess",
        "sign_conflict",
        "activation_linear_cka",
        "shared_encoder_gradient_cosine_similarity",
        "shared_encoder_gradient_l2_distance",
        "shared_encoder_gradient_dot_product",
        "shared_input_gradient_cosine_similarity",
        "shared_input_gradient_l2_distance",
        "shared_input_gradient_dot_product",
    ),
    # The two baselines are listed first, because every other row is compared with them.
    "predictor": (
        *("mean", "additive", "dyadic", "ols", "ridge", "lasso", "elastic_net"),
        *("backward_elimination", "forward_selection", "pearson", "pearson_l1", "mlp", "trees"),
    ),
}


# Users' configuration folders, which are searched before the package's.
_own: list[Path] = []


def add_folder(path: Path) -> None:
    """Search a user's configuration folder before the package's folder."""
    if path not in _own:
        _own.append(path)
        members.cache_clear()


def own_folders() -> tuple[Path, ...]:
    """Return the users' configuration folders in search order."""
    return tuple(_own)


def forget_folders() -> None:
    """Search only the package's configuration folder."""
    _own.clear()
    members.cache_clear()


def folder(group: str) -> Path:
    """Return the folder of a group in the package's configuration."""
    package = Path(__file__).parent
    installed = package / "conf"
    return (installed if installed.is_dir() else package.parent / "conf") / group


def files(group: str) -> dict[str, Path]:
    """Find the YAML files of a group, by name; users' files override the package's files of the same name."""
    found: dict[str, Path] = {}
    for place in (folder(group), *(own / group for own in reversed(_own))):
        found |= {path.stem: path for path in sorted(place.glob("*.yaml"))}
    return dict(sorted(found.items()))


def is_group(name: str) -> bool:
    """Return whether a group of this name exists."""
    return any((place / name).is_dir() for place in (folder(""), *_own))


def groups() -> list[str]:
    """List the names of all groups."""
    return sorted({one.name for place in (folder(""), *_own) for one in place.iterdir() if one.is_dir()})


@cache
def members(group: str) -> dict[str, dict[str, Any]]:
    """Read every member of a group.

    Returns:
        Name → options of its YAML file, in the order of tables: the set `paper`, the others of version 0.1.0, and then
        later members by name.
    """
    read = {name: read_member(path) for name, path in files(group).items()}
    found = {name: options for name, options in read.items() if "_target_" in options}
    first = (*(fixed_set(group, "paper") if "paper" in read else ()), *_PUBLISHED_ORDER.get(group, ()))
    return {name: found[name] for name in dict.fromkeys((*first, *found)) if name in found}


def fixed_set(group: str, name: str) -> tuple[str, ...]:
    """Read the YAML file of a set such as `metric=paper`, and list the names that the set selects."""
    return tuple(read_member(files(group)[name])["defaults"])


def options_of(group: str, name: str) -> dict[str, Any]:
    """Read the YAML file of one member of a group, without composing it with other files.

    Args:
        group: the folder in `conf`.
        name: name of the file, without its ending.
    """
    return read_member(files(group)[name])


@cache
def declared(target: str) -> dict[str, Any]:
    """Return the traits that a class or function declares, by parsing its source instead of importing it.

    Of a class these are the values assigned in its body, such as `needs_data: ClassVar[bool] = True`; of a function
    the keywords of its decorator `metric`. What is no literal is left out.

    Args:
        target: the dotted name of a member's `_target_`.
    """
    node = definition(target)
    if isinstance(node, ast.ClassDef):
        return dict(_constants(node))
    if isinstance(node, ast.FunctionDef):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "metric":
                return {word.arg: ast.literal_eval(word.value) for word in decorator.keywords if word.arg}
    return {}


def data_free() -> tuple[str, ...]:
    """List the merge methods that require no data, in the order in which tables show the methods."""
    return tuple(
        name
        for name, options in members("merge").items()
        if not declared(options["_target_"]).get("needs_data", False)
    )


def read_value(text: str) -> Any:
    """Read a value as it is written in a YAML file of a member.

    >>> read_value("1e-3"), read_value("[a, 2]"), read_value("2026-01-01")
    (0.001, ['a', 2], '2026-01-01')

    Raises:
        ValueError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"the value is not valid YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not valid YAML ({str(error).splitlines()[0]})") from error


def read_member(path: Path) -> dict[str, Any]:
    """Read a YAML file as Hydra does.

    Raises:
        UserError: it is not valid YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}. Correct the file.") from error


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the literals assigned in a class's body."""
    for statement in node.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            try:
                yield statement.target.id, ast.literal_eval(statement.value)
            except ValueError:
                continue


def definition(target: str) -> ast.AST | None:
    """Return the syntax tree of a dotted name's definition, even in lazily imported packages; None if not found."""
    found = located(target)
    return None if found is None else found[0]


def located(target: str) -> tuple[ast.ClassDef | ast.FunctionDef, Path] | None:
    """Find the class or function that a dotted name denotes; return its syntax tree and the path of its file."""
    module, _, name = target.rpartition(".")
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    source = Path(spec.origin)
    for node in parsed(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node, source
    stub = source.with_suffix(".pyi")
    for node in parsed(stub).body if stub.exists() else ():
        if isinstance(node, ast.ImportFrom) and node.module and any(one.asname == name for one in node.names):
            original = next(one.name for one in node.names if one.asname == name)
            return located(f"{module}.{node.module}.{original}")
    return None


def _spec(module: str) -> ModuleSpec | None:
    """Return the spec of a module; None if it does not exist, which Hydra reports when the member is chosen."""
    try:
        return find_spec(module)
    except ModuleNotFoundError:
        return None


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a source file; the result is cached."""
    return ast.parse(path.read_text(encoding="utf-8"))
