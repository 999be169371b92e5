"""Read the JSON file of a fitted predictor; unlike unpickling, this executes no code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeability.errors import UserError
from mergeability.prediction.fits import Evidence, MethodFit

FILE = "fitted.json"
FORMAT = 2
_READ = (1, FORMAT)


def read(path: Path | str) -> dict[str, Any]:
    """Read a fitted predictor from its file, or from the run folder of the analysis that fitted it.

    Files of format 1 have no names of tiers, no mean outcomes and no hashes of models. Their mean outcome of a fit is
    computed as that of the mean pair, which ridge with an intercept predicts exactly.

    Args:
        path: the file or the folder.

    Returns:
        `target`, `tasks`, `evidence` and `models`, the arguments of `Scorer`.

    Raises:
        UserError: the file does not exist, or this version cannot read it.
    """
    path = Path(path).expanduser()
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"There is no fitted predictor at {file}. An analysis with outcomes of at least four tasks writes"
            " one to its run folder. Give that folder, as in fitted=outputs/demo."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        if content["format"] not in _READ:
            known = " and ".join(map(str, _READ))
            raise UserError(
                f"{file} has format {content['format']}, but this version reads format {known}. Fit the"
                " predictor again."
            )
        evidence = [_evidence(one) for one in content["evidence"]]
        if not evidence:
            raise ValueError("it has no fit")
        return {
            "target": str(content["target"]),
            "tasks": [str(task) for task in content["tasks"]],
            "evidence": evidence,
            "models": {str(task): str(value) for task, value in content.get("models", {}).items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a fitted predictor ({error!r}). Fit the predictor again.") from error


def _evidence(content: Mapping[str, Any]) -> Evidence:
    metrics = [str(name) for name in content["metrics"]]
    columns = {name: [float(value) for value in content[name]] for name in ("lowest", "highest", "means")}
    methods = {str(name): _fit(fit, columns["means"]) for name, fit in content["methods"].items()}
    lengths = {len(metrics), *map(len, columns.values()), *(len(fit.weights) for fit in methods.values())}
    if len(lengths) != 1 or not methods:
        raise ValueError("its lists differ in length")
    return Evidence(
        metrics,
        columns["lowest"],
        columns["highest"],
        columns["means"],
        methods,
        str(content.get("name", "metrics")),
        _optional(content.get("regret")),
        _optional(content.get("fixed_regret")),
    )


def _fit(content: Mapping[str, Any], means: list[float]) -> MethodFit:
    intercept, half_width, level = (float(content[name]) for name in ("intercept", "half_width", "level"))
    weights = [float(value) for value in content["weights"]]
    mean = _optional(content.get("mean"))
    if mean is None:
        mean = intercept + sum(weight * one for weight, one in zip(weights, means, strict=True))
    return MethodFit(
        weights,
        intercept,
        half_width,
        level,
        _optional(content["r_beyond_mean"]),
        _optional(content["r_low"]),
        int(content["n_pairs"]),
        mean,
        _optional(content.get("coverage")),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")
