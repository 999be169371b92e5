"""The files that an analysis leaves in its run folder."""

import json
import shutil
import tempfile
from pathlib import Path

from mergeability.files import write_text
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdicts import verdict
from mergeability.prediction import PredictionResult
from mergeability.prediction.csv_files import csv_text
from mergeability.prediction.scorer import FILE as FITTED
from mergeability.reporting.report import write_report

RESULTS = (
    "pairs.csv",
    "sets.csv",
    "accuracies.csv",
    "alpha_curves.csv",
    "models.csv",
    "prediction.json",
    "predictions.csv",
    "coefficients.csv",
    "prediction",
    "scores.csv",
    "transfer.csv",
    FITTED,
    "run.json",
    "verdict.txt",
    "report.html",
)


def save(analysis: Analysis, folder: Path) -> Path:
    """Write the tables, `prediction.json`, `run.json`, `verdict.txt` and `report.html`; return the report's path.

    All of them or none: they are written beside the folder's other files first and moved there together, in
    the place of an earlier run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".results-") as name:
        staging = Path(name)
        write_report(analysis, staging / "report.html")
        write_text(staging / "pairs.csv", csv_text(analysis.pairs))
        if not analysis.models.empty:
            write_text(staging / "models.csv", csv_text(analysis.models, index=True))
        for name, table in (
            ("sets.csv", analysis.sets),
            ("accuracies.csv", analysis.accuracies),
            ("alpha_curves.csv", analysis.curves),
            ("scores.csv", analysis.scores),
            ("transfer.csv", analysis.transfer),
        ):
            if not table.empty:
                write_text(staging / name, csv_text(table))
        (analysis.prediction or PredictionResult()).save(staging)
        if analysis.fitted is not None:
            analysis.fitted.save(staging / FITTED)
        write_text(staging / "verdict.txt", f"{verdict(analysis)}\n")
        write_text(staging / "run.json", json.dumps(analysis.run, indent=1, default=str) + "\n")
        for result in RESULTS:
            _remove(folder / result)
            if (staging / result).exists():
                (staging / result).replace(folder / result)
    return folder / "report.html"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
