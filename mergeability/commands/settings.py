"""Check a composed configuration against the declared argument types of the classes and functions that it names."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mergeability.errors import UserError, did_you_mean, shown
from mergeability.verbs.annotations import (
    RefusedError,
    Signature,
    foreign_signature,
    signature,
    take,
    words,
)

# Settings that the commands read themselves, or that several nodes take.
_OTHERS = {
    **dict.fromkeys(
        ("training", "run", "analysis", "prediction", "profile", "task", "model", "suite"), "Node"
    ),
    **dict.fromkeys(("settings", "train", "paths", "reg", "tracking"), "Mapping"),
    "seed": "Seed",
    "variant": "PathPart | None",
    "overwrite": "bool",
    "doctor": "bool",
    "train.missing": "bool",
    "train.settings": "Sequence[str]",
    "objectives": "Sequence[str] | None",
    "paths.root": "str",
    "paths.checkpoints": "str",
    "paths.store": "str | None",
    "paths.runs": "str",
    "paths.data": "str | None",
    "reg.penalty": "Node | None",
    "reg.name": "PathPart",
    "reg.lambda": "NotNegative",
    "source": "str",
    "folder": "str",
    "base": "str | None",
    "progress": "Node | None",
    "model.architecture.embed_dim": "Count",
}
# Nodes whose entries become arguments of classes of other packages: package, file, class, and what these leave open.
_FOREIGN: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "trainer": (
        "lightning",
        "pytorch/trainer/trainer.py",
        "Trainer",
        {
            "devices": "Count | str | Sequence[int]",
            "log_every_n_steps": "Count",
            "precision": "int | str | None",
        },
    ),
    **{
        f"model.architecture.{tower}_cfg": (
            "open_clip",
            "model.py",
            f"CLIP{tower.title()}Cfg",
            dict.fromkeys(
                ("width", "heads", "head_width", "patch_size", "context_length", "vocab_size"), "Count"
            )
            | {
                "layers": "Count | Sequence[Count]",
                "image_size": "Count | Sequence[Count]",
                "mlp_ratio": "Positive",
            },
        )
        for tower in ("vision", "text")
    },
}
# Examples of settings whose format is hard to guess.
_EXAMPLES = {
    "suite.models": " suite.models names files: 'suite.models={a: a.safetensors, b: b.safetensors}'."
}
# `${metric}`, and `${oc.select:metric,{}}`, which stands for the same setting.
_INTERPOLATION = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,(?:\{\}|\w*))?\}")
_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check_settings(cfg: DictConfig) -> None:
    """Check the types and ranges of all settings, and restore text that YAML read as a number.

    Raises:
        UserError: a setting has the wrong type or is out of range, or is unknown.
    """
    for path, text in _OTHERS.items():
        parent, _, name = path.rpartition(".")
        node = _selected(cfg, parent)
        if isinstance(node, DictConfig) and name in node:
            _check(cfg, parent, node, name, ast.parse(text, mode="eval").body)
    for path, (package, file, title, more) in _FOREIGN.items():
        node = _selected(cfg, path)
        found = foreign_signature(package, file, title)
        if node is not None and not isinstance(node, DictConfig):
            raise UserError(
                f"Expected {path} to be a group of settings such as {{name: value}}, got {shown(_plain(node))}."
            )
        if node is not None and found is not None:
            declared = {name: ast.parse(text, mode="eval").body for name, text in more.items()}
            _check_node(cfg, path, node, Signature({**found.arguments, **declared}))
    for path, node in _nodes(cfg, ""):
        found = signature(str(node._target_))
        if found is not None:
            _check_node(cfg, path, node, found)


def _selected(cfg: DictConfig, path: str) -> Any:
    """Return the value at a dotted path; None if the path does not exist."""
    try:
        return OmegaConf.select(cfg, path) if path else cfg
    except OmegaConfBaseException:
        return None


def _nodes(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Yield every node that describes a call, with its path; interpolated nodes are visited once."""
    if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
        if "_target_" in node:
            yield path, node
        for name in node:
            inner = node._get_node(name)
            if isinstance(inner, DictConfig | ListConfig) and not inner._is_interpolation():
                yield from _nodes(inner, _join(path, str(name)))
    elif isinstance(node, ListConfig) and not (node._is_none() or node._is_missing()):
        for place in range(len(node)):
            inner = node._get_node(place)
            if isinstance(inner, DictConfig | ListConfig) and not inner._is_interpolation():
                yield from _nodes(inner, f"{path}[{place}]")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_node(cfg: DictConfig, path: str, node: DictConfig, declared: Signature) -> None:
    for name in list(node):
        if name in _HYDRA:
            continue
        annotation = declared.arguments.get(str(name))
        if annotation is not None:
            _check(cfg, path, node, str(name), annotation)
        elif not declared.open:
            known = list(declared.arguments)
            raise UserError(
                f"{path} does not have the setting {shown(str(name))}.{did_you_mean(str(name), known)} It"
                f" has: {', '.join(known)}."
            )


def _check(cfg: DictConfig, path: str, node: DictConfig, name: str, annotation: ast.expr) -> None:
    """Check one setting; messages name the setting from which its value was interpolated."""
    source, holder, key = _join(path, name), node, name
    while True:
        raw = holder._get_node(key)
        written = raw._value() if raw is not None and not OmegaConf.is_config(raw) else None
        found = _INTERPOLATION.fullmatch(written) if isinstance(written, str) else None
        if found is None:
            break
        source = found[1]
        parent, _, key = source.rpartition(".")
        selected = _selected(cfg, parent)
        if not isinstance(selected, DictConfig) or key not in selected:
            return
        holder = selected
    if OmegaConf.is_missing(holder, key):
        return
    try:
        value = _plain(holder[key])
    except OmegaConfBaseException as error:
        if "_target_" in str(annotation):
            raise
        raise UserError(f"{source} cannot be resolved: {str(error).splitlines()[0]}") from error
    try:
        taken = take(annotation, value)
    except RefusedError as error:
        example = source
        if error.entry is not None:
            name, annotation, value = error.entry
            source = f"{source}.{name}"
        hint = _EXAMPLES.get(example, "")
        if isinstance(value, bool | int | float) and _fits(annotation, str(value).lower()):
            hint = f""" Quote it: '{source}="{str(value).lower() if isinstance(value, bool) else value}"'."""
        raise UserError(f"Expected {source} to be {words(annotation)}, got {_shown(value)}.{hint}") from None
    if isinstance(taken, str) and not isinstance(value, str):
        with read_write(holder), open_dict(holder):
            holder[key] = taken


def _fits(annotation: ast.expr, value: Any) -> bool:
    try:
        take(annotation, value)
    except RefusedError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Return plain containers; entries of lists are resolved, and nested nodes are checked separately."""
    if not OmegaConf.is_config(value):
        return value
    return OmegaConf.to_container(value, resolve=isinstance(value, ListConfig))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return shown(dict(value) if isinstance(value, Mapping) else value)
