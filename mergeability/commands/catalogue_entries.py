"""Build the entries of the catalogue from docstrings, declared traits and YAML files."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergeability.commands.catalogue_metrics import (
    VIEWS,
    distinction,
    metric_cost,
    metric_range,
    metric_traits,
)
from mergeability.commands.member_docs import (
    Docstring,
    docstring,
    flattened,
    installed,
    shown_value,
    split_docstring,
    yaml_comments,
)
from mergeability.members import declared, files, fixed_set, located, members, options_of, parsed

RENDERED, REAL, TEXTS = "rendered images", "real images", "texts"
# Kind of task → the node of its options, and the class whose attributes describe them.
_SOURCES = {
    RENDERED: ("source", "rendered.source.Rendered"),
    REAL: ("dataset", "real.layouts.Layout"),
    TEXTS: ("source", "texts.corpus.TextCorpus"),
}
_OWN = "this project; not published elsewhere"
_PROTOCOLS = "mergeability.prediction.validation.protocols"


@dataclass(frozen=True)
class Option:
    """Hold one option of a catalogue entry, such as `merge.ties.density` of the method `ties`.

    Attributes:
        setting: its name on the command line.
        default: its value in the YAML file, as text.
        description: text from the docstring and from the comment after the value; empty if there is neither.
    """

    setting: str
    default: str
    description: str


@dataclass(frozen=True)
class Entry:
    """Hold one entry of the catalogue, such as a metric or a merge method, with its documentation.

    Attributes:
        name: as on command lines and in tables.
        kind: "metric", "method", "penalty", "predictor", "protocol", "task", "model" or "suite".
        group: a finer group: the category of a metric, or whether a task is of rendered images, real images or texts.
        summary: one line, without a full stop.
        definition: the paragraphs that follow in the docstring or at the start of the YAML file.
        formula: in symbols; empty if there is none.
        range: range and units of the value; empty if there is none.
        source: the paper, or "this project".
        options: name, default and meaning of each option.
        cost: required data, gradients and passes.
        config: path of its YAML file; empty for protocols.
        implementation: dotted name of the class or function.
        example: a command that uses it.

    Examples:
        >>> from mergeability.commands.catalogue import entry
        >>> ties = entry("ties")
        >>> ties.kind, ties.source, ties.options[0].setting, ties.options[0].default
        ('method', 'Yadav et al. 2023, TIES-Merging, arXiv 2306.01708', 'merge.ties.density', '0.2')
    """

    name: str
    kind: str
    group: str
    summary: str
    definition: str
    formula: str
    range: str
    source: str
    options: tuple[Option, ...]
    cost: str
    config: str
    implementation: str
    example: str


def suite_tasks(suite: str) -> tuple[str, ...]:
    """List the tasks of a suite; the list is empty if the suite consists of checkpoints or is a table.

    Examples:
        >>> from mergeability.commands.catalogue_entries import suite_tasks
        >>> suite_tasks("smoke")
        ('digits', 'letters', 'shapes', 'orientation')
    """
    defaults = options_of("suite", suite).get("defaults", [])
    return tuple(
        str(task)
        for one in defaults
        if isinstance(one, dict)
        for key, task in one.items()
        if re.match(r"/task@tasks\.", key)
    )


def metric_entry(name: str) -> Entry:
    """Build the catalogue entry that describes a metric."""
    options = members("metric")[name]
    doc, traits = docstring(options["_target_"]), metric_traits(name)
    view = options.get("view")
    published = "arXiv 2601.22285" if name in fixed_set("metric", "paper") else ""
    return _entry(
        name,
        "metric",
        "metric",
        doc,
        options,
        group=traits.category,
        summary=doc.summary + distinction(name),
        definition=f"The vectors a and b are {VIEWS[view]}." if view in VIEWS else "",
        range=doc.facts.get("range") or metric_range(traits),
        source=_source(doc) or published,
        cost=metric_cost(traits),
        example=f"mergeability analyze suite=mini model=clip_mini metric=[{name}] merge=none predictor=none",
    )


def method_entry(name: str) -> Entry:
    """Build the catalogue entry that describes a merge method."""
    options = members("merge")[name]
    traits = declared(options["_target_"])
    data = bool(traits.get("needs_data"))
    count = traits.get("models")
    number = f"merges exactly {count} models" if count else "merges two or more models"
    needs = "calibration images and zero-shot heads of each task" if data else "weights only, no images"
    models = " ".join(f"{one}.safetensors" for one in ("base", "a", "b"))
    return _entry(
        name,
        "method",
        "merge",
        docstring(options["_target_"]),
        options,
        range="M in the units of the weights, in float32; the merged model is θ_0 + α M",
        cost=f"{needs}; {number}",
        example=f"mergeability analyze suite=mini model=clip_mini merge={name}"
        if data
        else f"mergeability merge {models} --method {name}",
    )


def penalty_entry(name: str) -> Entry:
    """Build the catalogue entry that describes a penalty."""
    options = options_of("reg", name)
    penalty = dict(options["penalty"] or {})
    target = penalty.pop("_target_", "")
    doc = docstring(target) if target else Docstring("Fine-tune without a penalty")
    doc.parameters["lambda"] = "strength λ of the penalty, at least 0; 0 is plain fine-tuning"
    return _entry(
        name,
        "penalty",
        "reg",
        doc,
        {"lambda": options["lambda"], "penalty": penalty or None},
        implementation=target,
        cost=doc.facts.get("cost", "nothing"),
        example=f"mergeability train task=digits reg={name}" + (" reg.lambda=0.01" if target else ""),
    )


def predictor_entry(name: str) -> Entry:
    """Build the catalogue entry that describes a predictor; the summary is the first comment of its YAML file."""
    options = members("predictor")[name]
    target = options["_target_"]
    doc, header = docstring(target), yaml_comments(files("predictor")[name])
    place = located(target) if target.startswith("mergeability.") else None
    # Those in this module read a few named columns, which only an analysis with images has.
    named_columns = place is not None and place[1].stem == "own_evidence"
    text = f"{doc.summary}.\n\n{doc.body}" if doc.summary else ""
    return _entry(
        name,
        "predictor",
        "predictor",
        doc,
        options,
        summary=header.summary or doc.summary or f"The predictor {name}",
        definition="\n\n".join(part.strip() for part in (header.body, text) if part.strip()),
        body="",
        range="predictions in the units of the outcome",
        source=_source(doc) or ("scikit-learn" if target.startswith("sklearn.") else _OWN),
        cost="unlabelled images and the merge itself" if name == "probe" else "outcomes of other pairs",
        example="mergeability analyze suite=mini model=clip_mini metric=[paper,functional] probe=64 "
        f"predictor={name}"
        if named_columns
        else f"mergeability analyze suite=table suite.table=pairs.csv predictor={name}",
    )


def task_entry(name: str) -> Entry:
    """Build the catalogue entry of a task."""
    options = options_of("task", name)
    group = _task_group(options)
    header = yaml_comments(files("task")[name])
    if group == REAL:
        source = f"data set {options.get('dataset', {}).get('id', '')} on the Hugging Face Hub"
        cost = "images from the Hub, downloaded once, or a local copy"
    else:
        source = "rendered by this project" if group == RENDERED else _origin(options["source"]["subject"])
        cost = "no network"
    return _entry(
        name,
        "task",
        "task",
        Docstring(header.summary, header.body, parameters=_task_options(group)),
        options,
        group=group,
        source=source,
        cost=cost,
        example=f"mergeability train task={name}" + (" doctor=true" if group == REAL else ""),
    )


def _task_group(options: Mapping[str, Any]) -> str:
    if "source" not in options:
        return REAL
    return TEXTS if options["source"].get("_target_", "").endswith(".TextCorpus") else RENDERED


def _origin(subject: str) -> str:
    """Return where the texts of a subject come from, as the docstring of its module says."""
    spec = find_spec(f"mergeability.data.texts.subjects.{subject}")
    text = ast.get_docstring(parsed(Path(spec.origin))) if spec and spec.origin else ""
    return split_docstring(text or "").facts.get("source", "")


def _task_options(group: str) -> dict[str, str]:
    """Return the descriptions of the options of tasks, under their dotted names."""
    place, target = _SOURCES[group]
    nested = docstring(f"mergeability.data.{target}").parameters
    own = docstring("mergeability.data.tasks.Task").parameters
    return own | {f"{place}.{key}": text for key, text in nested.items()}


def model_entry(name: str) -> Entry:
    """Build the catalogue entry that describes a model, including options inherited from another model."""
    own = options_of("model", name)
    options: dict[str, Any] = {}
    for one in own.get("defaults", []):
        options |= own if one == "_self_" else options_of("model", one)
    options = options or own
    header = yaml_comments(files("model")[name])
    command, described = options.get("base_command"), docstring(options["_target_"])
    of_texts = str(options["_target_"]).endswith("TextModel")
    weights = (
        "weights of an installed package, or from a folder"
        if of_texts
        else "weights downloaded once, or from a file"
    )
    return _entry(
        name,
        "model",
        "model",
        Docstring(header.summary, header.body, parameters=described.parameters),
        options,
        source=described.facts.get("paper", ""),
        cost="pretraining on rendered images" if command else weights,
        example=installed(command)
        if command
        else f"mergeability train task={'sums' if of_texts else 'svhn'} model={name}",
    )


def suite_entry(name: str) -> Entry:
    """Build the catalogue entry that describes a suite."""
    options = {key: value for key, value in options_of("suite", name).items() if key != "tasks"}
    header, tasks = yaml_comments(files("suite")[name]), suite_tasks(name)
    pairs = len(tasks) * (len(tasks) - 1) // 2
    model = " model=clip_mini" if options.get("pixel_baseline") and name != "mini20" else ""
    target = options.get("_target_", "mergeability.pipeline.suites.TaskSuite")
    return _entry(
        name,
        "suite",
        "suite",
        Docstring(header.summary, header.body, parameters=docstring(target).parameters),
        options,
        definition=f"Tasks: {', '.join(tasks)}." if tasks else "",
        implementation=target,
        source="the benchmark of arXiv 2601.22285" if re.match(r"n\d+$", name) else "this project",
        cost=f"{len(tasks)} tasks, {pairs} pairs" if tasks else "no training",
        example=installed(
            header.commands[0] if header.commands else f"python analyze.py suite={name}{model}"
        ),
    )


def protocol_entry(node: ast.ClassDef) -> Entry:
    """Build the catalogue entry that describes a cross-validation protocol, from the protocol's class."""
    name, doc = constant(node, "name"), split_docstring(ast.get_docstring(node) or "")
    return _entry(
        name,
        "protocol",
        "",
        doc,
        {},
        implementation=f"{_PROTOCOLS}.{node.name}",
        source=_OWN,
        cost="one fit per fold",
        # The groups of `across` are those of one experiment.
        example="mergeability analyze experiment=evidence"
        if name == "across"
        else f"mergeability analyze suite=mini model=clip_mini prediction.protocols=[{name}]",
    )


def protocol_classes() -> list[ast.ClassDef]:
    """List the protocol classes in the order in which their module defines them."""
    found = located(f"{_PROTOCOLS}.LeaveOneTaskOut")
    assert found is not None
    return [one for one in parsed(found[1]).body if isinstance(one, ast.ClassDef) and constant(one, "name")]


def constant(node: ast.ClassDef, name: str) -> str:
    """Return a text constant of a protocol class; empty if the class does not define it."""
    return str(declared(f"{_PROTOCOLS}.{node.name}").get(name, ""))


def _entry(
    name: str,
    kind: str,
    folder_name: str,
    doc: Docstring,
    options: dict[str, Any],
    *,
    definition: str = "",
    body: str | None = None,
    **given: str,
) -> Entry:
    """Make an entry from its docstring and options; `given` replaces what is taken from these."""
    comments = yaml_comments(files(folder_name)[name]).comments if folder_name else {}
    prefix = f"{folder_name}.{name}" if kind in ("metric", "method", "predictor") else folder_name
    values: dict[str, Any] = {
        "group": "",
        # A file without a comment is also an entry.
        "summary": doc.summary or f"The {kind} {name}",
        "formula": doc.facts.get("formula") or _formula(doc.summary),
        "range": doc.facts.get("range", ""),
        "source": _source(doc),
        "implementation": options.get("_target_", ""),
        **given,
    }
    return Entry(
        name=name,
        kind=kind,
        definition=installed(
            "\n\n".join(part for part in (definition, doc.body if body is None else body) if part)
        ),
        options=tuple(
            Option(f"{prefix}.{key}", shown_value(value), _description(key, doc, comments))
            for key, value in flattened(options)
            if key != "name"
        ),
        config=f"conf/{folder_name}/{name}.yaml" if folder_name else "",
        **values,
    )


def _description(key: str, doc: Docstring, comments: dict[str, str]) -> str:
    """Join the description of an option in the docstring and the comment behind its value."""
    described = doc.parameters.get(key.removeprefix("penalty.").removesuffix("._target_"), "")
    comment = comments.get(key, "")
    # Comments such as "or tensor: …" continue the value in the file; the docstring describes the same choice.
    repeated = described and (comment in described or comment.startswith(("or ", "and ", "the method that")))
    # Options are written in YAML.
    described = re.sub(r"\bNone\b", "null", described)
    return "; ".join(part for part in (described, "" if repeated else comment) if part)


def _source(doc: Docstring) -> str:
    return doc.facts.get("paper") or doc.facts.get("source", "")


def _formula(summary: str) -> str:
    """Return the equation behind the colon of a first line, as predictors have it."""
    _, _, end = summary.partition(": ")
    return end if " = " in end else ""
