"""Match the tensor names of a base and its models, and select tensors by patterns."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergeability.errors import UserError
from mergeability.task_vectors.checks import check_same_architecture
from mergeability.weights.checkpoints import PREFIX, Checkpoint
from mergeability.weights.names import listed
from mergeability.weights.towers import has_blocks, is_head, unwrapped

BASE = "the base"
# Optional parts of architectures, in addition to heads.
_OPTIONAL = re.compile(r"(^|\.)(pooler\.|mask_token$|lm_head\.|visual_projection\.|text_projection\.)")
# Integer tensors that do not affect a model: position indices, masks, batch counts.
_BUFFER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|num_batches_tracked|relative_position_index|relative_coords_table"
    r"|attn_mask|attention_mask|causal_mask|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)$"
)
_QUANTISED = re.compile(
    r"(^|\.)(qweight|qzeros|g_idx|scales|SCB|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\S*"
    r"|weight_format|weight_scale|weight_scale_inv|input_scale|zero_point|weight_packed)(\.|$)"
)
_DEQUANTISE = (
    "Load it in transformers, call model = model.dequantize(), and save it with model.save_pretrained(folder); an "
    "adapter of a quantised base is given as it is, with the base in floating point."
)
_EMBEDDING = re.compile(r"\.(\w*embed\w*|wte|shared|patch\w*|stem|conv1)\.")
_BLOCK = 2**20
_SMALL = 2**16


@dataclass(frozen=True)
class LeftOut:
    """Record the tensors that are not used.

    Attributes:
        what: description of the tensors, and why they are unused.
        names: their names.
        owners: the models that hold them.
        matters: whether to always report them.
    """

    what: str
    names: tuple[str, ...]
    owners: tuple[str, ...] = ()
    matters: bool = True

    def __str__(self) -> str:
        """Return the sentence for the log and the report."""
        owners = f" of {listed(self.owners)}" if self.owners else ""
        return f"Left out: {self.what}{owners}: {grouped(self.names)}."


@dataclass(frozen=True)
class Chosen:
    """Select tensors by regular expressions on their names.

    Attributes:
        include: a tensor is used if one of these matches its name; every tensor without patterns.
        exclude: and none of these matches.

    Raises:
        UserError: a pattern is not a regular expression.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"'{pattern}' is not a valid regular expression: {error}.") from error

    @classmethod
    def of(cls, include: object, exclude: object) -> "Chosen":
        """Accept one pattern, a list of patterns, or None.

        Raises:
            UserError: they are something else.
        """
        return cls(_patterns("include", include), _patterns("exclude", exclude))

    def takes(self, name: str) -> bool:
        """Return whether a tensor is used."""
        included = not self.include or any(re.search(one, name) for one in self.include)
        return included and not any(re.search(one, name) for one in self.exclude)

    def check(self, names: Iterable[str]) -> None:
        """Check that every pattern matches at least one name.

        Raises:
            UserError: one is not.
        """
        names = list(names)
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(re.search(pattern, name) for name in names):
                    raise UserError(
                        f"No tensor name matches {option}='{pattern}'. The names begin with"
                        f" {listed(sorted(names))}."
                    )


@dataclass(frozen=True)
class Matched:
    """Hold the models, renamed to the base's tensor names, and the names of the tensors that are compared.

    Attributes:
        models: task → its checkpoint, under the base's names.
        names: the floating-point tensors common to all models, sorted.
        left_out: unused tensors.
        notes: sentences about tensors that may be used unintentionally.
    """

    models: dict[str, Checkpoint]
    names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = field(default=())


def matched(base: Checkpoint, models: Mapping[str, Checkpoint], chosen: Chosen) -> Matched:
    """Find the tensors that a base and its models have in common.

    A head that is absent from some models or has other shapes is left out; any other difference is an error.

    Args:
        base: the base.
        models: task → model.
        chosen: patterns that select tensors.

    Raises:
        UserError: the architectures differ, a pattern matches nothing, or weights are quantised.
    """
    models = {task: aligned(model, base) for task, model in models.items()}
    everyone = {BASE: base, **models}
    _refuse_quantised(base, models)
    floating = {task: set(one.floating) for task, one in everyone.items()}
    all_names = set().union(*floating.values())
    chosen.check(all_names)
    excluded = sorted(name for name in all_names if not chosen.takes(name))
    common = _common_prefix(base.names)
    differing = [name for name in sorted(all_names - set(excluded)) if not _same_shape(name, everyone)]
    heads = [name for name in differing if _is_optional(name, base, common)]
    dropped = {*excluded, *heads}
    for task, model in models.items():
        check_same_architecture(task, model, base, dropped)
    names = tuple(sorted(floating[BASE] - dropped))
    if not names and floating[BASE]:
        raise UserError("No tensors are left to compare. Relax the patterns in `exclude` or `include`.")
    groups = [
        *_by_owner("heads, absent from some models or of other shapes,", heads, floating),
        *_by_owner("by suite.include and suite.exclude, tensors", excluded, floating),
        *_unread(everyone),
        *_integers(base, models),
    ]
    return Matched(models, names, tuple(groups), _notes(names, common, len(models)))


def aligned(model: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Rename a model's tensors as in its base if the names differ only in a prefix or in wrapper modules.

    `module.encoder.weight` of a model becomes the base's `net.encoder.weight` if most tensors agree so.
    """
    if set(model.names) == set(base.names):
        return model
    mine, theirs = unwrapped(model.names), unwrapped(base.names)
    best, removed, added = len(mine.keys() & theirs.keys()), "", ""
    for one in _prefixes(mine):
        stripped = [name.removeprefix(one) for name in mine if name.startswith(one)]
        for other in _prefixes(theirs):
            count = sum(other + name in theirs for name in stripped)
            if count > best:
                best, removed, added = count, one, other
    renamed = {}
    for short, name in mine.items():
        moved = added + short.removeprefix(removed) if short.startswith(removed) else short
        renamed[name] = theirs.get(moved) or theirs.get(short) or name
    return model.renamed(renamed) if len(set(renamed.values())) == len(renamed) else model


def grouped(names: Iterable[str]) -> str:
    """Format tensor names on one line; names that differ only in numbers become one pattern with their count."""
    counts: dict[str, list[str]] = {}
    for name in sorted(names):
        counts.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return ", ".join(
        group[0] if len(group) == 1 else f"{pattern} ({len(group)})" for pattern, group in counts.items()
    )


def _patterns(option: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(one, str) and one for one in values):
        raise UserError(f"Expected {option} to be a regular expression or a list of them, got {value!r}.")
    return tuple(str(one) for one in values)


def _prefixes(names: Iterable[str]) -> list[str]:
    """List the prefixes of at least half of the names, the shortest first."""
    names = list(names)
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            prefix = ".".join(parts[:length]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return ["", *sorted((one for one, count in counts.items() if 2 * count >= len(names)), key=len)]


def _common_prefix(names: Iterable[str]) -> str:
    """Return the longest prefix of complete module names common to all names."""
    names = list(names)
    prefixes = [one for one in _prefixes(names) if all(name.startswith(one) for name in names)]
    return prefixes[-1] if len(names) > 1 else ""


def _same_shape(name: str, everyone: Mapping[str, Checkpoint]) -> bool:
    return len({one.shapes.get(name) for one in everyone.values()}) == 1


def _is_optional(name: str, base: Checkpoint, common: str) -> bool:
    """Return whether models of one base may differ in a tensor: a head, or a tensor outside the backbone."""
    if name.startswith(PREFIX):
        # All tensors of a CLIP's visual tower are required, including the projection.
        return False
    short = next(iter(unwrapped([name.removeprefix(common)])))
    if is_head(short) or is_head(name) or _OPTIONAL.search(short):
        return True
    # In transformers the backbone is one module (`bert.`, `vit.`, `model.`), and heads are next to it.
    inside = [own.removeprefix(common) for own in base.names]
    tops: dict[str, list[str]] = {}
    for own in inside:
        tops.setdefault(own.split(".")[0], []).append(own)
    largest = max(tops, key=lambda top: len(tops[top]), default="")
    names = tops.get(largest, [])
    # A module that contains only blocks is not the backbone, because embeddings and norms are next to it.
    is_backbone = len(names) >= 0.8 * len(inside) and any(map(_EMBEDDING.search, names)) and has_blocks(names)
    return is_backbone and short.split(".")[0] != largest


def _by_owner(what: str, names: Sequence[str], floating: Mapping[str, set[str]]) -> list[LeftOut]:
    """Group tensors by the set of models that hold them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        owners = tuple(task for task, own in floating.items() if name in own)
        groups.setdefault(owners, []).append(name)
    return [LeftOut(what, tuple(group), owners) for owners, group in groups.items()]


def _unread(everyone: Mapping[str, Checkpoint]) -> list[LeftOut]:
    """List the tensors that the checkpoints leave out, once for all models with the same ones."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for task, one in everyone.items():
        for kind, names in one.left_out.items():
            groups.setdefault((kind, tuple(sorted(names))), []).append(task)
    said = {
        "head": "heads",
        "other": "tensors outside the visual tower,",
        "settings": "unknown settings of the adapter,",
        "entries": "entries with other weights in the file,",
        "files": "other weights files in the folder,",
    }
    found = []
    for (kind, names), tasks in groups.items():
        changed = [
            task for task in tasks if kind == "text tower" and _text_differs(everyone[task], everyone[BASE])
        ]
        if changed:
            what = f"the text tower, which differs from the base's in {listed(changed)} (towers=both merges it too),"
        else:
            what = said.get(kind, f"the {kind}")
        found.append(LeftOut(what, names, tuple(tasks), matters=bool(changed) or kind != "text tower"))
    return found


def _text_differs(model: Checkpoint, base: Checkpoint) -> bool:
    """Return whether a text tower was fine-tuned, by comparing its small tensors, which fine-tuning always changes."""
    theirs, ours = base.source.entries, model.source.entries
    return any(
        name in ours
        and name in theirs
        and ours[name].shape == theirs[name].shape
        and ours[name].size <= _SMALL
        and not np.array_equal(model.source.read_float32(name), base.source.read_float32(name))
        for name in base.left_out.get("text tower", ())
    )


def _integers(base: Checkpoint, models: Mapping[str, Checkpoint]) -> list[LeftOut]:
    """List the integer tensors that differ from the base, without masks and similar constants."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, model in models.items():
        changed = tuple(name for name in _changed_integers(model, base) if not _BUFFER.search(name))
        if changed:
            groups.setdefault(changed, []).append(task)
    return [
        LeftOut("integer tensors that differ from the base's,", names, tuple(tasks))
        for names, tasks in groups.items()
    ]


def _changed_integers(model: Checkpoint, base: Checkpoint) -> list[str]:
    return sorted(
        name
        for name in {*model.names, *base.names}.difference(model.floating, base.floating)
        if not _is_equal(name, model, base)
    )


def _is_equal(name: str, model: Checkpoint, base: Checkpoint) -> bool:
    if name not in model.shapes or name not in base.shapes or model.shapes[name] != base.shapes[name]:
        return False
    if model.dtypes[name] != base.dtypes[name]:
        return False
    size = int(np.prod(base.shapes[name], dtype=np.int64))
    return all(
        np.array_equal(
            model.values(name, start, min(start + _BLOCK, size)),
            base.values(name, start, min(start + _BLOCK, size)),
        )
        for start in range(0, size, _BLOCK)
    )


def _refuse_quantised(base: Checkpoint, models: Mapping[str, Checkpoint]) -> None:
    """Raise an error for quantised weights: integers, or 8-bit floats with separate scales.

    Raises:
        UserError: such weights differ between a model and the base, or are in one of them only.
    """
    for task, model in models.items():
        shared = (
            set(base.floating)
            .intersection(model.names)
            .symmetric_difference(set(model.floating).intersection(base.names))
        )
        suspects = [name for name in _changed_integers(model, base) if _may_be_weight(name, model, base)]
        scaled = [
            name
            for one in (model, base)
            for name in one.names
            if one.dtypes[name].itemsize == 1
            and any(f"{name}_scale{end}" in one.shapes for end in ("", "_inv"))
        ]
        if found := sorted({*shared, *suspects, *scaled}):
            raise UserError(
                f"Expected floating-point weights, but the model of '{task}' or its base has quantised weights "
                f"({len(found)}): {listed([repr(name) for name in found])}. {_DEQUANTISE}"
            )


def _may_be_weight(name: str, model: Checkpoint, base: Checkpoint) -> bool:
    shape = model.shapes.get(name, base.shapes.get(name, ()))
    dtype = model.dtypes.get(name, base.dtypes.get(name))
    return bool(_QUANTISED.search(name)) or (
        len(shape) >= 2 and str(dtype) != "torch.bool" and not _BUFFER.search(name)
    )


def _notes(names: Sequence[str], common: str, models: int) -> tuple[str, ...]:
    """Return a sentence if heads are among the merged tensors."""
    heads = [
        name
        for name in names
        if not name.startswith(PREFIX) and is_head(next(iter(unwrapped([name.removeprefix(common)]))))
    ]
    if not heads or models < 2:
        return ()
    top = re.escape(common) + re.escape(heads[0].removeprefix(common).split(".")[0])
    return (
        f"The heads {grouped(heads)} are compared and merged like all other weights, which suits models of one task. "
        f"If the tasks differ, leave them out: 'suite.exclude=^{top}\\.'.",
    )
