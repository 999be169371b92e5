"""Parse the documentation of metrics, merge methods and other options from files, without importing their code.

Docstrings have lines such as `Formula: …`, `Range: …` and `Paper: …` in addition to the sections of Google's style;
YAML files have comments, at the start of the file and behind options.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from mergeability.members import located

# Lines of a docstring that name one fact; the text may continue on the next lines.
_FACTS = ("Formula", "Range", "Cost", "Paper", "Source")
_SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields", "Examples")
_OPTION = re.compile(r"( *)([\w.]+):(?: +(.*?))?\s*$")


@dataclass(frozen=True)
class Docstring:
    """Hold the parts of a docstring.

    Attributes:
        summary: the first line, without its full stop.
        body: the paragraphs between the first line and the first section, without facts.
        facts: `formula`, `range`, `paper` and `source`, where they are given.
        parameters: the names under `Args:` and `Attributes:` with their descriptions.
    """

    summary: str = ""
    body: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commented:
    """Hold the comments and options of a YAML file.

    Attributes:
        summary: the first sentence of the comments before the first option, without its full stop.
        body: the rest of them in Markdown, where indented lines are code.
        commands: the commands among the indented lines.
        comments: dotted name of an option → the comment behind it.
    """

    summary: str = ""
    body: str = ""
    commands: tuple[str, ...] = ()
    comments: dict[str, str] = field(default_factory=dict)


def docstring(target: str) -> Docstring:
    """Return the docstring of a class or function, or an empty one if another library defines the class or function.

    Args:
        target: its dotted name, as in `_target_`.

    Examples:
        >>> from mergeability.commands.member_docs import docstring
        >>> found = docstring("mergeability.merging.Average")
        >>> found.summary, found.facts["formula"]
        ('Average the task vectors', 'M = (1/T) Σ τ_t')
    """
    top = target.partition(".")[0]
    # Users' modules are in the working folder. Docstrings of libraries follow other conventions, and reading them
    # would import the library.
    if top != "mergeability" and not any(path.exists() for path in (Path(top), Path(f"{top}.py"))):
        return Docstring()
    found = located(target)
    return Docstring() if found is None else split_docstring(ast.get_docstring(found[0]) or "")


def split_docstring(text: str) -> Docstring:
    r"""Split a docstring into its parts.

    Args:
        text: the docstring, without indentation.

    Examples:
        >>> from mergeability.commands.member_docs import split_docstring
        >>> split_docstring("Add.\n\nFormula: a +\n    b.\n\nArgs:\n    a: one term.").facts
        {'formula': 'a + b'}
    """
    paragraphs = re.split(r"\n\s*\n", text.strip())
    facts: dict[str, str] = {}
    body: list[str] = []
    parameters: dict[str, str] = {}
    in_section = False
    for paragraph in paragraphs[1:]:
        head = re.match(r"(\w+):(?:\s|$)", paragraph)
        if head and head[1] in _FACTS:
            facts[head[1].lower()] = _joined(paragraph[head.end() :]).removesuffix(".")
        elif head and head[1] in _SECTIONS:
            in_section = True
            if head[1] in ("Args", "Attributes"):
                parameters |= dict(_parameters(paragraph))
        elif not in_section:
            # A fact may also end a paragraph, on a separate line.
            rest, mark, fact = paragraph.partition("\nSource: ")
            body.append(rest)
            if mark:
                facts["source"] = _joined(fact).removesuffix(".")
    summary = _joined(paragraphs[0]) if text.strip() else ""
    return Docstring(summary, "\n\n".join(body), facts, parameters)


def _parameters(section: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"\n    (?=\S)", section)[1:]:
        name, mark, description = entry.partition(":")
        if mark:
            yield name.strip(), _joined(description)


def _joined(text: str) -> str:
    """Join the lines of a text, and drop a final full stop that ends no further sentence."""
    line = " ".join(text.split())
    return line[:-1] if line.endswith(".") and ". " not in line else line


def yaml_comments(path: Path) -> Commented:
    """Read the comments of a YAML file.

    Args:
        path: the file.

    Examples:
        >>> from mergeability.commands.member_docs import yaml_comments
        >>> from mergeability.members import folder
        >>> yaml_comments(folder("merge") / "ties.yaml").comments["density"]
        'share of entries that are kept'
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line[1:] for line in takewhile(lambda line: line.startswith("#"), lines)]
    header = [line for line in header if line.strip() and not line.strip().startswith("@package")]
    commands = [line.strip() for line in header if line.startswith("   ")]
    blocks = [
        indent(dedent("\n".join(group)), "    ") if code else "\n".join(line.strip() for line in group)
        for code, group in groupby(header, key=lambda line: line.startswith("   "))
    ]
    first = _joined(blocks[0]) if blocks else ""
    # A full stop ends a sentence only if a capital letter follows.
    summary, *rest = re.split(r"\. (?=[A-Z`])", first, maxsplit=1)
    body = "\n\n".join(part for part in (*rest, *blocks[1:]) if part)
    comments = dict(_behind(lines[len(list(takewhile(lambda line: line.startswith("#"), lines))) :]))
    return Commented(summary.rstrip(".:"), body, tuple(commands), comments)


def _behind(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the dotted names of options with the comments behind them."""
    parents: list[tuple[int, str]] = []
    for line in lines:
        code, mark, comment = line.partition(" #")
        option = _OPTION.match(code)
        if not option:
            continue
        indent = len(option[1])
        parents = [one for one in parents if one[0] < indent]
        if mark:
            yield ".".join([*(name for _, name in parents), option[2]]), comment.strip()
        if not option[3]:
            parents.append((indent, option[2]))


def flattened(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options of a YAML file by dotted name, without keys that only Hydra uses.

    Args:
        options: as they were read.
        prefix: prefix of the names.

    Examples:
        >>> from mergeability.commands.member_docs import flattened
        >>> list(flattened({"_target_": "a.B", "p": 0.9, "then": {"_target_": "c.D", "alpha": 1.0}}))
        [('p', 0.9), ('then._target_', 'c.D'), ('then.alpha', 1.0)]
    """
    for name, value in options.items():
        if name.startswith(("_", "/")) or name == "defaults":
            continue
        # The keys of spellings are class names, not options.
        if isinstance(value, dict) and name != "spellings":
            if "_target_" in value:
                yield f"{prefix}{name}._target_", value["_target_"]
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def shown_value(value: Any) -> str:
    """Format a value as YAML; show only the first items of long lists.

    Examples:
        >>> from mergeability.commands.member_docs import shown_value
        >>> shown_value(None), shown_value([0.1, 1])
        ('null', '[0.1, 1]')
    """
    if isinstance(value, list):
        items = [shown_value(one) for one in value]
        return f"[{', '.join(items[:6])}, …] ({len(items)})" if len(items) > 8 else f"[{', '.join(items)}]"
    if isinstance(value, dict):
        items = [f"{key}: {shown_value(one)}" for key, one in value.items()]
        return (
            f"{{{', '.join(items[:3])}, …}} ({len(items)})" if len(items) > 3 else f"{{{', '.join(items)}}}"
        )
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def installed(text: str) -> str:
    """Replace `python train.py` and `python analyze.py` in a text by the installed commands.

    Examples:
        >>> from mergeability.commands.member_docs import installed
        >>> installed("python analyze.py suite=mini")
        'mergeability analyze suite=mini'
    """
    return re.sub(r"\bpython (train|analyze)\.py\b", r"mergeability \1", text)
