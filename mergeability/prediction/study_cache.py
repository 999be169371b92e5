"""Cache studies of predictors, so that a second run with the same table reuses the fits."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.study import Known, StudySettings
from mergeability.prediction.validation.evaluate import PredictionResult
from mergeability.provenance import class_name, version

# Increment it when a predictor, protocol or table gives different numbers; recorded values in the tests detect this.
_VERSION = 2
_LIBRARIES = ("numpy", "pandas", "scikit-learn", "scipy")


def study_key(
    table: pd.DataFrame,
    metrics: Sequence[str],
    predictors: Mapping[str, Predictor],
    methods: Sequence[str],
    settings: StudySettings,
    known: Known,
) -> dict[str, Any]:
    """Return the cache key of a study: a hash of its table, its options, and the versions of the code and libraries."""
    return {
        "table": table_hash(table),
        "sets": table_hash(known.sets),
        "ranges": {name: [str(bound) for bound in bounds] for name, bounds in known.ranges.items()},
        "categories": {name: list(members) for name, members in known.categories.items()},
        "metrics": list(metrics),
        "methods": list(methods),
        "predictors": {name: _described(one) for name, one in predictors.items()},
        "order": list(predictors),
        "settings": {name: str(value) for name, value in asdict(settings).items()},
        "version": _VERSION,
        "libraries": libraries(),
    }


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that fits depend on."""
    return {library: version(library) for library in _LIBRARIES}


def to_record(result: PredictionResult) -> dict[str, Any]:
    """Convert a study to JSON-compatible lists, with null for undefined values."""
    frames = {name: getattr(result, name) for name in ("folds", "predictions", "coefficients")}
    return {
        "records": result.records,
        "notes": result.notes,
        "frames": {name: to_columns(frame) for name, frame in frames.items()},
        "tables": {name: to_columns(frame) for name, frame in result.tables.items()},
    }


def from_record(record: Mapping[str, Any]) -> PredictionResult:
    """Convert the output of `to_record` back to a study."""
    frames = {name: from_columns(columns) for name, columns in record["frames"].items()}
    tables = {name: from_columns(columns) for name, columns in record["tables"].items()}
    return PredictionResult(records=record["records"], notes=record["notes"], tables=tables, **frames)


def to_columns(frame: pd.DataFrame) -> list[list[Any]]:
    """Convert a table to JSON-compatible lists: the name, type and values of each column."""
    return [
        [str(name), str(frame[name].dtype), [_plain(value) for value in frame[name].tolist()]]
        for name in frame.columns
    ]


def from_columns(columns: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Convert the output of `to_columns` back to a table."""
    return pd.DataFrame({name: pd.Series(values, dtype=kind) for name, kind, values in columns})


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def table_hash(table: pd.DataFrame) -> str:
    """Hash the values and the column names of a table; a different order of rows or columns changes the hash."""
    return hashlib.sha256(table.to_csv(index=False, float_format=None).encode()).hexdigest()


def _described(predictor: Predictor) -> dict[str, str]:
    options = {name: repr(value) for name, value in predictor.get_params().items()}
    return {"class": class_name(predictor), **options}
