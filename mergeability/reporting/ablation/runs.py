"""Read the run folders of the analyses in an ablation, and check that the analyses are comparable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mergeability.errors import UserError
from mergeability.files import read_object
from mergeability.prediction.csv_files import read_csv
from mergeability.prediction.pair_table import TARGETS, outcome_methods


@dataclass(frozen=True)
class Run:
    """Hold one analysis, in which all models were fine-tuned with the same setting and seed.

    Attributes:
        setting: `<penalty>-<λ>`, as in the checkpoint's folder, without its variant; `none-0` is plain fine-tuning.
        penalty: its name; `none` for λ = 0.
        strength: λ.
        seed: of the fine-tuning.
        conditions: settings that comparable runs must share, by name.
        models: one row per task, with `finetuned_accuracy`.
        pairs: one row per pair, with metrics and outcomes.
        metrics: the columns of `pairs` that are metrics.
        stable: metric → its sign in `stable_by`, a predictor of normalised accuracy, if equal under every method;
            empty if this was not studied.
        stable_by: name of that predictor.
    """

    setting: str
    penalty: str
    strength: float
    seed: int
    conditions: dict[str, Any]
    models: pd.DataFrame
    pairs: pd.DataFrame
    metrics: tuple[str, ...]
    stable: dict[str, int] = field(default_factory=dict)
    stable_by: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The setting, penalty, strength and seed that identify the run."""
        return {
            "setting": self.setting,
            "penalty": self.penalty,
            "strength": self.strength,
            "seed": self.seed,
        }


def run_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of an analysis from `run.json` in its folder.

    Raises:
        UserError: the file cannot be read, or is not the record of a run.
    """
    config = (read_object(folder / "run.json") or {}).get("config")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'run.json'} is not the record of a run. Repeat the analysis in {folder}.")
    return config


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read run folders in the given order; skip those without merges."""
    return [run for run in map(_read, map(Path, folders)) if run is not None]


def _read(folder: Path) -> Run | None:
    """Read what an analysis left; return None if it merged nothing."""
    if not (folder / "run.json").is_file() or not (folder / "models.csv").is_file():
        return None
    config = run_config(folder)
    text = {"task_a": str, "task_b": str, "task": str}
    pairs = read_csv(folder / "pairs.csv", dtype=text, keep_default_na=True)
    models = read_csv(folder / "models.csv", dtype=text)
    if not outcome_methods(pairs):
        return None
    strength = float(config["reg"]["lambda"])
    trained = str(config["suite"]["trained"]).rsplit("/", 1)[0]
    variant = config.get("variant")
    stable, stable_by = _stable(folder)
    return Run(
        setting=trained.removesuffix(f"+{variant}") if variant else trained,
        penalty="none" if strength == 0 else config["reg"]["name"],
        strength=strength,
        seed=int(config["seed"]),
        conditions=_conditions(config, models, pairs),
        models=models,
        pairs=pairs,
        metrics=tuple(name for name in config.get("metric") or () if name in pairs.columns),
        stable=stable,
        stable_by=stable_by,
    )


def _conditions(config: dict[str, Any], models: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return what an outcome or a metric depends on beside the models' training, under the names of the settings.

    A training with other settings than its folder has is refused when it is asked for; its variant tells it apart.
    """
    alpha = config.get("alpha")
    tuning = ("alpha_grid", "validation_images") if isinstance(alpha, str) else ()
    evidence = config.get("profile") or {}
    return {
        "suite": config["suite"]["name"],
        "model": config["model"]["name"],
        "variant": config.get("variant"),
        "tasks": list(models["task"]),
        "pairs": sorted(zip(pairs["task_a"], pairs["task_b"], strict=True)),
        "alpha": alpha,
        **{name: config.get(name) for name in (*tuning, "test_images")},
        **{f"merge.{name}": options for name, options in (config.get("merge") or {}).items()},
        **{f"profile.{name}": value for name, value in evidence.items() if name != "memory_budget"},
    }


def differences(run: Run, other: Run) -> list[str]:
    """List the conditions in which two runs differ; ignore methods that only one run used."""
    return [name for name, value in run.conditions.items() if other.conditions.get(name, value) != value]


def described_difference(run: Run, other: Run, between: str) -> str:
    """Describe the conditions in which two runs differ; include both values of a condition if they are simple."""
    return ", ".join(
        f"{name} ({_shown(run.conditions[name])}{between}{_shown(other.conditions[name])})"
        if all(isinstance(one.conditions[name], str | float | int | None) for one in (run, other))
        else name
        for name in differences(run, other)
    )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _stable(folder: Path) -> tuple[dict[str, int], str | None]:
    path = folder / "prediction" / "stable_metrics.csv"
    if not path.is_file():
        return {}, None
    table = read_csv(path)
    # One predictor decides: of several, the first that has weights.
    predictor = table["predictor"].iloc[0]
    table = table[(table["target"] == TARGETS[0]) & (table["predictor"] == predictor)]
    signs = {str(row["metric"]): int(row["sign"]) for _, row in table.iterrows() if row["stable"]}
    return signs, str(predictor)
