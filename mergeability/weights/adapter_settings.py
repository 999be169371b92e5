"""Read the settings of a LoRA adapter, and locate its modules in the base."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeability.errors import UserError
from mergeability.files import read_json
from mergeability.weights.names import listed
from mergeability.weights.towers import unwrapped

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# Options for which the trained model is not W + s·B·A with optional row lengths.
_UNSUPPORTED = (
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
    "layer_replication",
    "alora_invocation_tokens", "target_parameters", "trainable_token_indices",
)  # fmt: skip
# Initialisations that leave the base unchanged; others move a part of the base into the adapter.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# Settings that are used, or on which the merged weights do not depend beyond the names and shapes of the tensors.
_KNOWN = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights",
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Names of the factors of adapters, of PEFT and others.
_FACTOR = re.compile(
    r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector|down|up|mid)|hada_w\d\w*|lokr_w\d\w*|oft_\w+)(\.|$)"
)
INSTEAD = "Where the adapter was trained, run model.merge_and_unload().save_pretrained(folder) and give that folder."
# Weight names of a module, and of an attention with fused queries, keys and values.
_ENDS = (".weight", ".in_proj_weight")


def weights_of(folder: Path) -> Path:
    """Return the path of the weights file in an adapter's folder.

    Raises:
        UserError: there is none.
    """
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{folder} contains {CONFIG} but none of {', '.join(WEIGHTS)}. Copy the whole folder of the"
            " adapter."
        )
    return found[0]


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings of an adapter.

    Raises:
        UserError: the settings cannot be read, or the adapter is not described by W + s·B·A.
    """
    if not path.is_file():
        raise UserError(
            f"There is no {path.name} in {path.parent}, so the scale of the adapter is unknown. Copy the "
            "whole folder of the adapter."
        )
    config = read_json(path, cure="Copy it again.")
    if not isinstance(config, dict):
        raise UserError(f"{path} does not contain the settings of an adapter. Copy it again.")
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise UserError(
            f"{path.parent} is an adapter of type {config['peft_type']}, but only LoRA is supported. {INSTEAD}"
        )
    if active := [name for name in _UNSUPPORTED if config.get(name)]:
        raise UserError(f"{path.parent} uses {listed(active)}, which is not supported. {INSTEAD}")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise UserError(
            f"{path.parent} was initialised with init_lora_weights={config['init_lora_weights']!r}, which"
            f" also changes the base, so the adapter alone does not determine the model. {INSTEAD}"
        )
    return config


def unknown_settings(config: Mapping[str, Any]) -> list[str]:
    """List the settings of an adapter that are set but unknown, as those of a newer PEFT are."""
    return sorted(name for name, value in config.items() if value and name not in _KNOWN)


def refuse_factors(owner: str, names: Iterable[str]) -> None:
    """Refuse the tensors of an adapter where complete weights are expected.

    Args:
        owner: whose tensors they are.
        names: those that others lack.

    Raises:
        UserError: names are those of low-rank factors.
    """
    if found := sorted(name for name in names if _FACTOR.search(name)):
        raise UserError(
            f"Expected complete weights, but {len(found)} tensors of {owner} are factors of an adapter:"
            f" {listed(found)}. An adapter made by PEFT is given as its folder, with {CONFIG}. Merge any other adapter"
            " into its base with the program that made it, and give the merged model."
        )


def in_base(name: str) -> str:
    """Return the name that a module has in the base: without the prefixes and wrapper levels that PEFT adds."""
    for prefix in ("base_model.model.", "base_model."):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    name = re.sub(r"(^|\.)modules_to_save\.(?:default\.)?", r"\1", name)
    return next(iter(unwrapped([name.replace(".base_layer.", ".")])))


@dataclass(frozen=True)
class Place:
    """Map the names of an adapter's modules to the names of the base's modules, by replacing one prefix with another.

    Attributes:
        files: the base's names without wrapper modules → its names.
        removed: the prefix in the adapter.
        added: the prefix in the base.
        weights: module → the name of its weight in the base.
    """

    files: Mapping[str, str]
    removed: str
    added: str
    weights: Mapping[str, str]

    @classmethod
    def find(cls, modules: Iterable[str], entries: Iterable[str], adapter: Path) -> "Place":
        """Find a prefix replacement after which the base contains every module of the adapter.

        Raises:
            UserError: there is none.
        """
        files, modules = unwrapped(entries), list(modules)
        fewest = modules
        # If the first module is not in the base, the last one shows how many are missing.
        for removed, added in (*_exchanges(modules[0], files), *_exchanges(modules[-1], files)):
            weights = {name: _weight(name, removed, added, files) for name in modules}
            missing = [name for name, weight in weights.items() if weight is None]
            if not missing:
                return cls(files, removed, added, {name: one for name, one in weights.items() if one})
            fewest = min(fewest, missing, key=len)
        raise UserError(
            f"The adapter {adapter.parent} changes {len(fewest)} modules that are not in the base, such as"
            f" '{min(fewest)}'. Set suite.base to the base on which the adapter was trained, saved with"
            " the module names of transformers."
        )

    def of(self, name: str) -> str:
        """Return a tensor's name in the base; if the base does not contain it, return the name unchanged."""
        moved = self.added + name.removeprefix(self.removed) if name.startswith(self.removed) else name
        return self.files.get(moved) or self.files.get(name) or name


def _exchanges(module: str, files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the replacements of prefixes that map one module to the base, the shortest first."""
    parts = module.split(".")
    for cut in range(len(parts)):
        removed, tail = "".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])
        for end in _ENDS:
            found = [name.removesuffix(tail + end) for name in files if name.endswith(tail + end)]
            yield from (
                (removed, added) for added in sorted(found, key=len) if not added or added.endswith(".")
            )


def _weight(module: str, removed: str, added: str, files: Mapping[str, str]) -> str | None:
    if not module.startswith(removed):
        return None
    return next(
        (files[name] for end in _ENDS if (name := added + module.removeprefix(removed) + end) in files), None
    )


def _of_pattern(pattern: Any, module: str, default: Any, folder: Path) -> Any:
    """Return the first entry whose pattern a module's name ends with; the default without any."""
    if not isinstance(pattern, Mapping):
        return default
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise UserError(
                f"'{key}' in {folder / CONFIG} is not a valid regular expression ({error})."
            ) from error
    return default


def scale_of(config: Mapping[str, Any], module: str, folder: Path) -> tuple[int, float]:
    """Return the rank r and the scale s of a module: α/r, or α/√r with `use_rslora`.

    Raises:
        UserError: they are no numbers.
    """
    rank = _of_pattern(config.get("rank_pattern"), module, config.get("r"), folder)
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"), folder)
    is_rank = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
    is_alpha = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if not is_rank or not is_alpha:
        raise UserError(
            f"Expected {folder / CONFIG} to contain a positive integer r and a number lora_alpha, got {rank!r} and"
            f" {alpha!r} for '{module}'. Copy the file again."
        )
    return rank, float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
