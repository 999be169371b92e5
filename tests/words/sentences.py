"""List every sentence that users read: messages, report texts, help, first lines of public docstrings, comments in conf.

python tests/words/sentences.py              all of them, sorted: file, line, kind, text
python tests/words/sentences.py --sample 60 --seed 0
python tests/words/sentences.py --sample 60 --context    each where its reader meets it
python tests/words/sentences.py --count      how often each pattern of private dialect occurs
"""

import argparse
import ast
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Functions whose literal arguments are shown, by the last part of their name.
SHOWN = {
    "UserError", "RefusedError", "DamagedError", "warning", "info", "error", "write", "paragraphs", "bullet_list", "Section",
    "folded", "figure_block", "add_argument", "ArgumentParser", "append", "Group", "fail", "refused", "remark", "sentence",
}  # fmt: skip
# What style guides of this project hunt for; each is a regular expression over sentences.
PATTERNS = {
    "'what is', 'what comes', 'what lies' as a noun": r"\b[Ww]hat (is|are|was|were|comes|lies|has|have|can|cannot|needs?)\b",
    "beside": r"\b[Bb]esides?\b",
    "'has not', 'is none', 'has none'": r"\b(has not|have not|is none|are none|has none|have none|has no)\b(?! (been|yet))",
    "anew, lest, such a": r"\b(anew|lest|such an?)\b",
    "of its own": r"\bof (its|their|his) own\b",
    "Say whether, Say which, …": r"^Say (whether|which|where|how|what|that|why|who)?",
    "one row a pair": r"\b(one|a|an|two|\d+) \w+ an? (pair|model|task|method|fold|set|row|run|job|metric|layer|process|merge|worker)\b",
    "relabelling": r"\b[Rr]elabel",
    "judge": r"\b[Jj]udge",
    "known partner, both new": r"\b(known partner|both new)\b",
    "foresee": r"\b[Ff]or(esee|esees|eseen|esaw|eseeable|esight)\b",
    "deviation without standard": r"(?<!standard )\bdeviation",
    "personified code": r"\b(the page|the report|it|the run|the log|this page) (says|speaks|tells|knows|is told|speaks of)\b",
}


@dataclass(frozen=True, order=True)
class Sentence:
    """One text and its place."""

    file: str
    line: int
    kind: str
    text: str


def sentences() -> list[Sentence]:
    """Collect all sentences, sorted by place."""
    found: list[Sentence] = []
    for path in [*sorted((ROOT / "mergeability").rglob("*.py")), ROOT / "train.py", ROOT / "analyze.py"]:
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [Sentence(name, line, "message", text) for line, text in _messages(tree)]
        found += [Sentence(name, line, "docstring", text) for line, text in _docstrings(tree)]
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            comment = re.search(r"(?:^|\s)#\s(?!@package)(.*\w.*)$", line)
            if comment:
                found.append(Sentence(name, number, "comment", comment[1].strip()))
    return sorted(set(found))


def _messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SHOWN:
            for argument in [*node.args, *(one.value for one in node.keywords)]:
                for text in _texts(argument):
                    if re.search(r"[a-z]{2,} [a-z]{2,}", text):
                        yield argument.lineno, " ".join(text.split())


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the literals of an expression, placeholders of f-strings as {…}."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(one.value) if isinstance(one, ast.Constant) else "{…}" for one in node.values)
    elif isinstance(node, ast.BinOp | ast.IfExp | ast.List | ast.Tuple | ast.BoolOp | ast.Starred):
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name, text = getattr(node, "name", ""), ast.get_docstring(node)
            if text and not name.startswith("_"):
                yield getattr(node, "lineno", 1), text.splitlines()[0]


def context(sentence: Sentence) -> str:
    """Return what a reader sees beside a sentence: the definition, the names of placeholders, the whole comment."""
    path = ROOT / sentence.file
    lines = path.read_text(encoding="utf-8").splitlines()
    if sentence.kind == "comment":
        first = last = sentence.line - 1
        while first > 0 and lines[first - 1].lstrip().startswith("#"):
            first -= 1
        while last + 1 < len(lines) and lines[last].lstrip().startswith("#"):
            last += 1
        return "\n".join(lines[first : last + 1])
    tree = ast.parse("\n".join(lines))
    if sentence.kind == "docstring":
        for owner in ast.walk(tree):
            for node in ast.iter_child_nodes(owner):
                if getattr(node, "lineno", 0) == sentence.line and getattr(node, "name", ""):
                    inside = f"class {owner.name}\n" if isinstance(owner, ast.ClassDef) else ""
                    return inside + ast.unparse(_without_body(node))
        return "module " + sentence.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for argument in [*node.args, *(one.value for one in node.keywords)]:
                if argument.lineno == sentence.line and sentence.text in [
                    " ".join(one.split()) for one in _texts(argument)
                ]:
                    return ast.unparse(argument)
    return ""


def _without_body(node: ast.AST) -> ast.AST:
    node.body, node.decorator_list = node.body[:1], []
    return node


def counts(found: list[Sentence]) -> dict[str, int]:
    """Count the sentences that each pattern occurs in."""
    return {name: sum(bool(re.search(one, text.text)) for text in found) for name, one in PATTERNS.items()}


def main() -> None:
    """Print sentences, a sample of them, or counts of patterns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="draw so many of the sorted sentences at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--context", action="store_true", help="show where a reader meets each sentence")
    parser.add_argument("--count", action="store_true", help="count patterns instead")
    parser.add_argument(
        "--pattern", help="only sentences that match this pattern's name or regular expression"
    )
    options = parser.parse_args()
    found = sentences()
    if options.count:
        for name, count in counts(found).items():
            sys.stdout.write(f"{count:5}  {name}\n")
        sys.stdout.write(f"{len(found):5}  sentences\n")
        return
    if options.pattern:
        pattern = PATTERNS.get(options.pattern, options.pattern)
        found = [one for one in found if re.search(pattern, one.text)]
    if options.sample:
        found = random.Random(options.seed).sample(found, min(options.sample, len(found)))
    for one in found:
        sys.stdout.write(f"{one.file}:{one.line}  {one.kind}  {one.text}\n")
        if options.context:
            sys.stdout.write("".join(f"        {line}\n" for line in context(one).splitlines()) + "\n")


if __name__ == "__main__":
    main()
