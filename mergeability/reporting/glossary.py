"""Build the glossary of a page from `glossary.md` and from the docstrings of metrics, methods and predictors."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup, escape

from mergeability.members import located, members
from mergeability.reporting.summaries import SCALE_SUFFIXES
from mergeability.reporting.templates import render

# The heading of many columns of means; as the name of a predictor it is a term.
_ORDINARY = ("mean",)
_GROUPS = {"metric": "metric", "merge": "merge method", "predictor": "predictor"}

# Headings of tables and names of protocols → their terms; a heading that is a term needs no entry.
_TERMS = {
    "mean normalised": "Normalised accuracy",
    "norm_acc": "Normalised accuracy",
    "mean accuracy": "Accuracy",
    "acc": "Accuracy",
    "fine-tuned": "Fine-tuned model",
    "base": "Base model",
    "± 95 %": "Interval",
    "95 % from": "Interval",
    "± interval": "Half-width",
    "± half-width": "Half-width",
    "tasks covered": "Coverage",
    "inside the interval": "Coverage",
    "own α": "α",
    "α without labels": "α without labels",
    "r beyond mean": "r beyond the mean",
    "r beyond mean, two new tasks": "r beyond the mean",
    "ρ beyond task effects": "Beyond task effects",
    "error saved beyond task effects": "Beyond task effects",
    "mean error": "Error",
    "p, permutation test": "Permutation test",
    "usual p": "p-value",
    "regret of choice": "Regret",
    "abstained": "Abstention",
    "abstains: outside the range": "Abstention",
    "core": "Stable metric",
    "top-5 overlap": "Fingerprint",
    "sign agreement": "Fingerprint",
    "outcome": "Outcome",
    "protocol": "Fold",
    "loto": "Leave one task out",
    "l2to": "Leave two tasks out",
    "halves": "Disjoint halves",
    "R² over mean": "R² over the mean",
    "r of ridge": "r",
    "penalty": "Penalty",
    "seeds": "Seed",
}


@dataclass(frozen=True)
class Entry:
    """Hold one term and its definition.

    Attributes:
        term: as it is written.
        kind: of a member, such as `metric`; empty for a term of `glossary.md`.
        text: the definition.
    """

    term: str
    kind: str
    text: str

    @property
    def anchor(self) -> str:
        """The HTML id of the entry."""
        return _anchor(self.term)


@cache
def terms() -> Mapping[str, Entry]:
    """Read `glossary.md` and map each anchor to its entry, in alphabetical order of the terms."""
    text = files("mergeability.reporting").joinpath("glossary.md").read_text(encoding="utf-8")
    parts = (part.partition("\n") for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    entries = [Entry(term.strip(), "", " ".join(body.split())) for term, _, body in parts]
    return {entry.anchor: entry for entry in sorted(entries, key=lambda one: one.term.casefold())}


@cache
def entry(name: str) -> Entry | None:
    """Return the glossary entry for `name`, or None if there is no entry.

    Args:
        name: a term such as `Gain kept`, a heading such as `± 95 %`, or a member such as `ties`, also with a suffix
            for the scale of the merges, such as `ties_tuned`.
    """
    known = terms().get(_anchor(_TERMS.get(name, name)))
    if known is not None:
        return known
    for suffix in SCALE_SUFFIXES:
        own = name.removesuffix(suffix)
        for group, kind in _GROUPS.items():
            if own in members(group):
                return Entry(own, kind, _definition(members(group)[own]))
    return None


def linked(text: str) -> Markup:
    """Link a heading to its definition; without a definition, only escape the heading.

    Examples:
        >>> from mergeability.reporting.glossary import linked
        >>> str(linked("gain kept")), str(linked("a < b"))
        ('<a class="term" href="#term-gain-kept">gain kept</a>', 'a &lt; b')
    """
    found = entry(text)
    if found is None or text in _ORDINARY:
        return escape(text)
    return Markup('<a class="term" href="#{}">{}</a>').format(found.anchor, text)


def linked_name(name: str) -> Markup:
    """Link the name of a metric, method or predictor to its definition; ignore a suffix such as `_tuned`."""
    found = entry(name)
    return (
        escape(name)
        if found is None
        else Markup('<a class="term" href="#{}">{}</a>').format(found.anchor, name)
    )


def glossary_section(body: str, names: Sequence[str], level: int = 3) -> Markup:
    """Return the HTML definitions of all linked terms and all given names; return an empty text if there are none.

    Args:
        body: the HTML of the page.
        names: metrics, methods, predictors and protocols.
        level: of its headings.
    """
    wanted = set(re.findall(r'href="#(term-[^"]+)"', body))
    found = [one for anchor, one in terms().items() if anchor in wanted]
    of_names = [entry(name) for name in dict.fromkeys(names)]
    everything = {one.anchor: one for one in [*found, *of_names] if one is not None}
    # Links to members that are not among the names, such as in tables of other runs.
    for group in _GROUPS:
        for name in members(group):
            if _anchor(name) in wanted and _anchor(name) not in everything:
                everything[_anchor(name)] = entry(name)
    entries = [one for one in everything.values() if one is not None]
    kinds = {kind: [one for one in entries if one.kind == kind] for kind in ("", *_GROUPS.values())}
    headings = {"": "Terms", "metric": "Metrics", "merge method": "Merge methods", "predictor": "Predictors"}
    groups = [(headings[kind], own) for kind, own in kinds.items() if own]
    return render(
        "glossary",
        level=level,
        groups=[(title, [(one.anchor, one.term, _marked(one.text)) for one in own]) for title, own in groups],
    )


def _anchor(term: str) -> str:
    """Return the identifier of a term: its letters and digits, joined by hyphens."""
    return "term-" + "-".join(re.findall(r"[^\W_]+", term.casefold().replace("²", "2")))


def _definition(options: Mapping[str, Any]) -> str:
    """Define a member by the first line of its docstring and its options."""
    target = str(options["_target_"])
    found = located(target)
    line = (ast.get_docstring(found[0]) or "").partition("\n")[0] if found is not None else ""
    if not target.startswith("mergeability."):
        line = f"{target.rpartition('.')[2]} of {target.partition('.')[0]}. {line}".rstrip()
    own = {name: value for name, value in options.items() if not name.startswith("_") and value is not None}
    listed = ", ".join(
        f"{name} = {value}" for name, value in own.items() if isinstance(value, str | int | float)
    )
    return f"{line} Options: {listed}." if listed else line


def _marked(text: str) -> Markup:
    """Show what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )
