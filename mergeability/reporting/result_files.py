"""Write the result files of an analysis into its run folder."""

import json
import shutil
from pathlib import Path

from mergeability.files import can_be_replaced, replace_folder, sweep_folders, temporary_folder, write_text
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
    "layers.csv",
    "prediction.json",
    "predictions.csv",
    "coefficients.csv",
    "prediction",
    "scores.csv",
    "transfer.csv",
    "predicted_pairs.csv",
    "predicted_accuracy.csv",
    FITTED,
    "run.json",
    "verdict.txt",
    "report.html",
)


def save(analysis: Analysis, folder: Path) -> Path:
    """Write the tables, `prediction.json`, `run.json`, `verdict.txt` and `report.html` of an analysis.

    Either all files are written or none: they are written into a new folder, which then replaces `folder` and takes
    over its other files. Only if the folder cannot be replaced (`mergeability.files.can_be_replaced`) are they moved
    one by one.

    Args:
        analysis: the results.
        folder: where the files go; created if necessary.

    Returns:
        The path of the report.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting import save
        >>> analysis = Analysis("Six tasks", example_pairs(), ["cosine", "distance"], ["ties"])
        >>> with TemporaryDirectory() as name:
        ...     report = save(analysis, Path(name) / "run")
        ...     files = sorted(file.name for file in report.parent.iterdir())
        >>> report.name
        'report.html'
        >>> [file for file in files if file.endswith((".json", ".txt"))]
        ['prediction.json', 'run.json', 'verdict.txt']
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep_folders(folder.resolve())
    whole = can_be_replaced(folder)
    with temporary_folder(folder.resolve() if whole else folder / "results") as staging:
        _write(analysis, staging)
        if whole:
            replace_folder(staging, folder.resolve(), keep=lambda name: name not in RESULTS)
        else:
            for result in RESULTS:
                _remove(folder / result)
                if (staging / result).exists():
                    (staging / result).replace(folder / result)
    return folder / "report.html"


def _write(analysis: Analysis, folder: Path) -> None:
    write_report(analysis, folder / "report.html")
    write_text(folder / "pairs.csv", csv_text(analysis.pairs))
    if not analysis.models.empty:
        write_text(folder / "models.csv", csv_text(analysis.models, index=True))
    for name, table in (
        ("sets.csv", analysis.sets),
        ("accuracies.csv", analysis.accuracies),
        ("alpha_curves.csv", analysis.curves),
        ("layers.csv", analysis.layers),
        ("scores.csv", analysis.scores),
        ("transfer.csv", analysis.transfer),
        ("predicted_pairs.csv", analysis.predicted_pairs),
        ("predicted_accuracy.csv", analysis.predicted_accuracy),
    ):
        if not table.empty:
            write_text(folder / name, csv_text(table))
    (analysis.prediction or PredictionResult()).save(folder)
    if analysis.fitted is not None:
        analysis.fitted.save(folder / FITTED)
    write_text(folder / "verdict.txt", f"{verdict(analysis)}\n")
    write_text(folder / "run.json", json.dumps(analysis.run, indent=1, default=str) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
