"""List and document metrics, merge methods, penalties, predictors, protocols, tasks, models and suites.

The entries are read from `conf` and from docstrings, without importing their code, so that `mergeability list` and
`mergeability show` answer at once. The reference of the documentation is generated from the same entries.
"""

import re
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mergeability.commands.catalogue_entries import (
    Entry,
    Option,
    constant,
    method_entry,
    metric_entry,
    model_entry,
    penalty_entry,
    predictor_entry,
    protocol_classes,
    protocol_entry,
    suite_entry,
    suite_tasks,
    task_entry,
)
from mergeability.commands.sets import derived_sets
from mergeability.commands.wording import did_you_mean
from mergeability.errors import UserError, short
from mergeability.members import files, fixed_set, members, own_folders

__all__ = ["KINDS", "Entry", "Option", "entries", "entry", "listing", "page", "sets_of", "text"]

# Plural name → group in `conf`. Protocols have no files: they are classes.
KINDS = {
    "metrics": "metric",
    "methods": "merge",
    "penalties": "reg",
    "predictors": "predictor",
    "protocols": "",
    "tasks": "task",
    "models": "model",
    "suites": "suite",
}
_BUILDERS: dict[str, Callable[[str], Entry]] = {
    "metrics": metric_entry,
    "methods": method_entry,
    "penalties": penalty_entry,
    "predictors": predictor_entry,
    "tasks": task_entry,
    "models": model_entry,
    "suites": suite_entry,
}
# The kind of an entry → plural.
_PLURALS = {"penalty": "penalties"} | {kind[:-1]: kind for kind in KINDS if kind != "penalties"}
_WIDTH = 100


def entries(kind: str) -> tuple[Entry, ...]:
    """List the entries of a kind in the order in which tables show them.

    Args:
        kind: a key of `KINDS`.

    Raises:
        UserError: there is no such kind.

    Examples:
        >>> from mergeability.commands.catalogue import entries
        >>> [entry.name for entry in entries("methods")][:3]
        ['average', 'ta', 'ties']
    """
    if kind not in KINDS:
        raise UserError(
            f"Expected one of {', '.join(KINDS)}, got {short(kind)!r}.{did_you_mean(kind, KINDS)}"
        )
    return _entries_in(kind, own_folders())


@cache
def _entries_in(kind: str, _own: tuple[Path, ...]) -> tuple[Entry, ...]:
    # Users' folders affect the result, so they are part of the cache key.
    if kind == "protocols":
        return tuple(protocol_entry(node) for node in protocol_classes())
    return tuple(_BUILDERS[kind](name) for name in _names(kind))


def entry(name: str) -> Entry:
    """Find an entry by its name, or by kind and name, such as `method/ties`.

    Raises:
        UserError: there is no such entry, or entries of several kinds have this name.

    Examples:
        >>> from mergeability.commands.catalogue import entry
        >>> entry("stable_rank").kind, entry("method/ties").name
        ('metric', 'ties')
    """
    kind, slash, last = name.rpartition("/")
    if slash and kind not in _PLURALS and kind not in KINDS:
        raise UserError(
            f"Expected one of {', '.join(_PLURALS)} before the slash, got {short(name)!r}."
            f"{did_you_mean(kind, _PLURALS)}"
        )
    searched = [_PLURALS.get(kind, kind)] if slash else list(KINDS)
    found = [plural for plural in searched if last in _names(plural)]
    if not found:
        known = [one for plural in searched for one in _names(plural)]
        raise UserError(
            f"There is no {short(last)!r} {'among ' + searched[0] if slash else 'in the catalogue'}."
            f"{did_you_mean(last, known)} List all names with `mergeability list KIND`, where KIND is one of"
            f" {', '.join(KINDS)}."
        )
    if len(found) > 1:
        choices = " or ".join(
            f"{singular}/{last}" for singular, plural in _PLURALS.items() if plural in found
        )
        raise UserError(f"The name {short(last)!r} is ambiguous. Use {choices}.")
    return next(one for one in entries(found[0]) if one.name == last)


def listing(kind: str) -> str:
    """Format all entries of a kind, such as metrics, for the terminal, with one name and summary per line.

    Args:
        kind: a key of `KINDS`.

    Raises:
        UserError: there is no such kind.

    Examples:
        >>> from mergeability.commands.catalogue import listing
        >>> print(listing("protocols").splitlines()[0])
        loto    Create one fold per task: train on the pairs without the task, validate on the pairs with the task
    """
    found = entries(kind)
    width = max(len(one.name) for one in found)
    lines = [f"{one.name:{width}}  {one.summary}" for one in found]
    sets = sets_of(kind)
    if sets:
        lines += ["", "Sets: " + ", ".join(f"{name} ({len(names)})" for name, names in sets.items())]
    return "\n".join(lines)


def text(one: Entry) -> str:
    """Format the documentation of an entry for the terminal.

    Examples:
        >>> from mergeability.commands.catalogue import entry, text
        >>> print(text(entry("ta")).splitlines()[0])
        ta (method): Add the task vectors
    """
    parts = ["\n".join(_wrapped(f"{one.name} ({one.kind}): {one.summary}"))]
    for paragraph in one.definition.split("\n\n") if one.definition else ():
        lines = paragraph.splitlines()
        code = all(line.startswith(("    ", "- ", "  ")) for line in lines)
        parts.append("\n".join(lines if code else _wrapped(" ".join(lines))))
    facts = [(label, value) for label, value in _facts(one) if value]
    width = max(len(label) for label, _ in facts)
    parts.append(
        "\n".join(line for label, value in facts for line in _wrapped(value, f"{label:{width}}  ", width + 2))
    )
    if one.options:
        width = min(max(len(_given(option)) for option in one.options), _WIDTH // 2)
        lines = [line for option in one.options for line in _option_lines(option, width)]
        parts.append("\n".join(["Options:", *lines]))
    parts.append(f"Example:\n  {one.example}")
    return "\n\n".join(parts)


def page(one: Entry) -> str:
    """Format the documentation of an entry as a Markdown page.

    Examples:
        >>> from mergeability.commands.catalogue import entry, page
        >>> print(page(entry("ta")).splitlines()[0])
        # `ta`
    """
    parts = [f"# `{one.name}`", _prose(one.summary + ("" if one.summary.endswith("?") else "."))]
    if one.formula:
        parts.append(f"```text\n{one.formula}\n```")
    if one.definition:
        parts.append(_prose(one.definition))
    parts.append(
        "\n".join(
            f"- **{label}:** {value}"
            for label, value in _facts(one)
            if value and label not in ("Formula", "Code")
        )
    )
    if one.options:
        rows = [
            f"| `{option.setting}` | `{option.default}` | {_cell(option.description)} |"
            for option in one.options
        ]
        parts.append("\n".join(["| option | default | meaning |", "|---|---|---|", *rows]))
    parts.append(f"```console\n$ {one.example}\n```")
    if one.implementation:
        parts.append(f"Implemented by `{one.implementation}`.")
    return "\n\n".join(parts) + "\n"


def _facts(one: Entry) -> list[tuple[str, str]]:
    return [
        ("Formula", one.formula),
        ("Group", one.group),
        ("Sets", ", ".join(name for name, names in sets_of(_PLURALS[one.kind]).items() if one.name in names)),
        ("Range", one.range),
        ("Cost", one.cost),
        ("Source", one.source),
        ("File", one.config),
        ("Code", one.implementation),
    ]


def _given(option: Option) -> str:
    return f"{option.setting}={option.default}"


def _option_lines(option: Option, width: int) -> list[str]:
    """Write an option and its description in two columns; a long option has lines for itself."""
    given = _given(option)
    if len(given) <= width:
        return _wrapped(option.description, f"  {given:{width}}  ", width + 4)
    described = _wrapped(option.description, " " * (width + 4), width + 4) if option.description else []
    return [*_wrapped(given, "  ", 6), *described]


def _cell(value: str) -> str:
    return _prose(value).replace("|", "\\|")


def _prose(value: str) -> str:
    """Escape angle brackets, which Markdown takes for HTML, outside code."""
    lines = [
        line
        if line.startswith("    ")
        else "".join(
            part if part.startswith("`") else part.replace("<", "&lt;")
            for part in re.split(r"(`[^`]*`)", line)
        )
        for line in value.split("\n")
    ]
    return "\n".join(lines)


def _wrapped(value: str, first: str = "", indent: int = 0) -> list[str]:
    """Wrap a text at the width of a terminal; lines after the first are indented."""
    return textwrap.wrap(
        value,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


@cache
def sets_of(kind: str) -> dict[str, tuple[str, ...]]:
    """Return the named sets of a kind, such as `paper`; files in `conf` define some sets, and code derives the others.

    Args:
        kind: a key of `KINDS`; only metrics, methods and predictors have sets.

    Examples:
        >>> from mergeability.commands.catalogue import sets_of
        >>> sets_of("methods")["paper"]
        ('average', 'ta', 'ties', 'dare', 'tsv', 'iso_c')
    """
    if kind not in ("metrics", "methods", "predictors"):
        return {}
    group = KINDS[kind]
    names = [name for name in files(group) if name not in members(group)]
    fixed = {name: fixed_set(group, name) for name in names if name != "none"}
    return fixed | {name: tuple(names) for name, names in derived_sets().get(group, {}).items()}


def _names(kind: str) -> tuple[str, ...]:
    """List the names of a kind in the order of tables."""
    return _names_in(kind, own_folders())


@cache
def _names_in(kind: str, _own: tuple[Path, ...]) -> tuple[str, ...]:
    if kind == "protocols":
        return tuple(constant(node, "name") for node in protocol_classes())
    group = KINDS[kind]
    if kind in ("metrics", "methods", "predictors"):
        return tuple(members(group))
    found = list(files(group))
    if kind == "tasks":
        order = [name for suite in ("mini20", "n20") for name in suite_tasks(suite)]
        return tuple(name for name in dict.fromkeys([*order, *found]) if name in found)
    return tuple(found)
