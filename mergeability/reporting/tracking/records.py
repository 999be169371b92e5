"""Log configurations, numbers, tables, figures and artifacts of training runs and analyses to tracking services."""

import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdicts import verdict
from mergeability.prediction.csv_files import read_csv
from mergeability.prediction.pair_table import TARGETS
from mergeability.progress import Progress
from mergeability.reporting import logged_names as names
from mergeability.reporting.tracking.figures import figures_of
from mergeability.reporting.tracking.guard import Guarded
from mergeability.reporting.tracking.weights_and_biases import WandbLogger

if TYPE_CHECKING:
    import wandb

# Seconds between two records of the progress.
_PROGRESS_EVERY = 2
# What names of W&B artifacts and metrics may hold.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_IN_METRICS = re.compile(r"[^\w./ αλθ+=-]+")
_LONGEST_NAME = 120
_HASH_DIGITS = 12


def key(name: str) -> str:
    """Replace characters such as `*`, `:` and quotes, which some tracking services do not allow in metric names."""
    return _NOT_IN_METRICS.sub("_", name).strip(" _/") or "unnamed"


def model_artifact_name(task: str, sha256: str) -> str:
    """Return the artifact name of a fine-tuned model, which is equal in all runs that train or use the model.

    Args:
        task: name of the task.
        sha256: of the model's weights, 64 hexadecimal digits.

    Returns:
        `<task>-<first 12 digits>`, at most 120 characters.

    Examples:
        >>> from mergeability.reporting.tracking import model_artifact_name
        >>> model_artifact_name("my task", "0123456789abcdef" * 4)
        'my_task-0123456789ab'
    """
    return f"{_NOT_IN_NAMES.sub('_', task)[: _LONGEST_NAME - _HASH_DIGITS - 1]}-{sha256[:_HASH_DIGITS]}"


def log_training(loggers: Sequence[Guarded], card: Mapping[str, Any], folder: Path) -> None:
    """Log the results of a training run, which are read from the model's card.

    Args:
        loggers: open loggers.
        card: of the model; accuracies in [0, 1], seconds, GiB.
        folder: of the checkpoint; its weights are logged to W&B if `log_model` is set.

    Examples:
        >>> from pathlib import Path
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> from mergeability.reporting.tracking import Guarded, log_training
        >>> class Printing(DummyLogger):
        ...     def log_metrics(self, metrics, step=None):
        ...         print(metrics)
        >>> log_training([Guarded(Printing(), "printing")], {"accuracy": {"test": 0.9}, "seconds": 3.5}, Path("cars"))
        {'test_accuracy': 0.9, 'seconds': 3.5}
    """
    numbers = training_metrics(card)
    for one in loggers:
        one.log_metrics(numbers)
        one.save()
        if isinstance(one.inner, WandbLogger) and "sha256" in card:
            wandb_log = one.inner
            one.attempt(lambda wandb_log=wandb_log: _log_model(wandb_log, card, folder))


def training_metrics(card: Mapping[str, Any]) -> dict[str, float]:
    """Collect the numbers of a model's card, such as `test_accuracy`, `parameters` and `seconds`.

    Args:
        card: of a model.

    Returns:
        Name → number.

    Examples:
        >>> training_metrics({"accuracy": {"test": 0.9}, "base_accuracy": {"test": 0.2}, "seconds": 3.5})
        {'test_accuracy': 0.9, 'base_test_accuracy': 0.2, 'seconds': 3.5}
    """
    found = {f"{split}_accuracy": value for split, value in (card.get("accuracy") or {}).items()}
    found |= {f"base_{split}_accuracy": value for split, value in (card.get("base_accuracy") or {}).items()}
    found |= {f"parameters/{name}": count for name, count in (card.get("parameters") or {}).items()}
    found |= {name: card.get(name) for name in (names.SECONDS, "images_per_second", names.PEAK_MEMORY)}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def summary_metrics(analysis: Analysis) -> dict[str, tuple[float, str]]:
    """Collect the mean values of an analysis, each with `max` if higher values are better, otherwise with `min`.

    These are the mean and worst outcome of each method over pairs, the mean accuracy of the models on their own tasks,
    the seconds, and each predictor's r.

    Args:
        analysis: the results.

    Returns:
        Name → value and direction.

    Examples:
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting.tracking import summary_metrics
        >>> analysis = Analysis("Six tasks", example_pairs(), ["cosine"], ["ties"])
        >>> {name: (round(value, 3), better) for name, (value, better) in summary_metrics(analysis).items()}
        {'norm_acc_ties/mean': (0.884, 'max'), 'norm_acc_ties/worst': (0.835, 'max')}
    """
    found: dict[str, tuple[float, str]] = {}
    for target, method in product(TARGETS, analysis.methods):
        values = analysis.pairs.get(f"{target}_{method}", pd.Series(dtype=float)).dropna()
        if len(values):
            found[key(names.mean_outcome(target, method))] = float(values.mean()), "max"
            found[key(names.worst_outcome(target, method))] = float(values.min()), "max"
    for column in ("finetuned_accuracy", "base_accuracy"):
        if column in analysis.models and analysis.models[column].notna().any():
            found[f"{column}/mean"] = float(analysis.models[column].mean()), "max"
    for record in analysis.prediction.records if analysis.prediction is not None else []:
        # A protocol whose folds are single pairs has a correlation over all of them only.
        r = record["r_mean"] if record["r_mean"] is not None else record["r_beyond_mean"]
        if r is not None:
            one = (record[name] for name in ("protocol", "target", "method", "predictor"))
            found[key(names.correlation(*one))] = float(r), "max"
    seconds = analysis.run.get("seconds") or {}
    if seconds:
        found[names.SECONDS] = float(sum(seconds.values())), "min"
    return found


def tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Collect the non-empty tables of an analysis."""
    prediction = {} if analysis.prediction is None else analysis.prediction.tables
    found = {
        names.PAIRS: analysis.pairs,
        "sets": analysis.sets,
        names.MODELS: analysis.models.reset_index() if len(analysis.models) else analysis.models,
        "accuracies": analysis.accuracies,
        "alpha_curves": analysis.curves,
        "scores": analysis.scores,
        "transfer": analysis.transfer,
        "predicted_pairs": analysis.predicted_pairs,
        "predicted_accuracy": analysis.predicted_accuracy,
        **{names.prediction_table(name): frame for name, frame in prediction.items()},
    }
    return {key(name): frame for name, frame in found.items() if len(frame)}


def log_analysis(loggers: Sequence[Guarded], analysis: Analysis, report: Path) -> None:
    """Log the results of an analysis.

    Every logger receives the means. W&B also receives tables, figures, report, verdict and lineage; MLflow the files
    of the run folder; TensorBoard the verdict as text.

    Args:
        loggers: open loggers.
        analysis: the results.
        report: path of its report, in the run folder.

    Examples:
        >>> from pathlib import Path
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting.tracking import Guarded, log_analysis
        >>> class Printing(DummyLogger):
        ...     def log_metrics(self, metrics, step=None):
        ...         print({name: round(value, 3) for name, value in metrics.items()})
        >>> analysis = Analysis("Six tasks", example_pairs(), ["cosine"], ["ties"])
        >>> log_analysis([Guarded(Printing(), "printing")], analysis, Path("report.html"))
        {'norm_acc_ties/mean': 0.884, 'norm_acc_ties/worst': 0.835}
    """
    numbers = summary_metrics(analysis)
    for one in loggers:
        inner = one.inner
        if isinstance(inner, WandbLogger):
            one.attempt(lambda inner=inner: _log_to_wandb(inner, analysis, report, numbers))
            continue
        one.log_metrics({name: value for name, (value, _) in numbers.items()})
        if isinstance(inner, MLFlowLogger):
            one.attempt(lambda inner=inner: _log_to_mlflow(inner, analysis, report))
        elif isinstance(inner, TensorBoardLogger):
            one.attempt(lambda inner=inner: inner.experiment.add_text("verdict", f"{verdict(analysis)}"))
        one.save()


def log_summary(loggers: Sequence[Guarded], page: Path) -> None:
    """Log the page and the tables of a sweep's summary to W&B and MLflow; other loggers are skipped.

    Args:
        loggers: open loggers.
        page: the summary's page; the `.csv` files of its folder are logged as well.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.reporting.tracking import Guarded, log_summary, wandb_logger
        >>> with TemporaryDirectory() as folder:
        ...     page = Path(folder) / "summary.html"
        ...     _ = page.write_text("<h1>Across methods</h1>", encoding="utf-8")
        ...     guarded = Guarded(wandb_logger(folder, mode="disabled"), "wandb")
        ...     log_summary([guarded], page)
        >>> guarded.lost
        False
    """
    files = sorted(path for path in page.parent.glob("*.csv"))
    for one in loggers:
        inner = one.inner
        if isinstance(inner, WandbLogger):
            one.attempt(lambda inner=inner: _summarise_in_wandb(inner, page, files))
        elif isinstance(inner, MLFlowLogger):
            for file in (page, *files):
                one.attempt(
                    lambda inner=inner, file=file: inner.experiment.log_artifact(inner.run_id, str(file))
                )


def _summarise_in_wandb(inner: WandbLogger, page: Path, files: Sequence[Path]) -> None:
    import wandb

    run: wandb.Run = inner.experiment  # type: ignore[assignment]
    artifact = wandb.Artifact(f"summary-{run.id}", type="summary")
    for file in (page, *files):
        artifact.add_file(str(file))
    for file in files:
        table = read_csv(file, keep_default_na=True)
        if len(table):
            run.log({key(file.stem): wandb.Table(dataframe=_plain(table))})
    run.log({names.REPORT: wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
    run.log_artifact(artifact)


def tracked_progress(progress: Progress, loggers: Sequence[Guarded]) -> Progress:
    """Wrap a progress display so that it also logs the share of finished items, in (0, 1], as `progress/<loop>`.

    Args:
        progress: shows loops on the terminal.
        loggers: open loggers; those of CSV files are skipped.

    Returns:
        A progress that logs at most every two seconds, and at the end of each loop.

    Examples:
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> from mergeability.progress import no_progress
        >>> from mergeability.reporting.tracking import Guarded, tracked_progress
        >>> class Printing(DummyLogger):
        ...     def log_metrics(self, metrics, step=None):
        ...         print(metrics)
        >>> progress = tracked_progress(no_progress, [Guarded(Printing(), "printing")])
        >>> list(progress(["cars", "dtd"], "merging", 2))
        {'progress/merging': 1.0}
        ['cars', 'dtd']
    """
    live = [one for one in loggers if not isinstance(one.inner, CSVLogger)]

    def wrapped(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        shown = time.monotonic()
        for done, item in enumerate(progress(items, description, total), start=1):
            yield item
            if time.monotonic() - shown > _PROGRESS_EVERY or done == total:
                shown = time.monotonic()
                for one in live:
                    one.log_metrics({f"progress/{key(description)}": done / max(total, 1)})

    return wrapped if live else progress


def _log_to_wandb(
    inner: WandbLogger, analysis: Analysis, report: Path, numbers: Mapping[str, tuple[float, str]]
) -> None:
    import wandb

    run: wandb.Run = inner.experiment  # type: ignore[assignment]
    for name, (_, direction) in numbers.items():
        run.define_metric(name, summary=direction)
    run.log({name: value for name, (value, _) in numbers.items()})
    for name, frame in tables(analysis).items():
        run.log({name: wandb.Table(dataframe=_plain(frame))})
    for name, figure in figures_of(analysis).items():
        run.log({name: wandb.Plotly(figure)})
    text = str(verdict(analysis))
    run.log(
        {
            names.VERDICT: wandb.Html(verdict(analysis).html(), inject=False),
            names.REPORT: wandb.Html(report.read_text(encoding="utf-8"), inject=False),
        }
    )
    run.summary[names.VERDICT_TEXT] = text
    used = {
        task: model_artifact_name(str(task), sha256)
        for task, sha256 in (analysis.run.get("checkpoint_sha256") or {}).items()
    }
    if not run.offline:
        for task, sha256 in (analysis.run.get("checkpoint_sha256") or {}).items():
            run.use_artifact(_model_artifact(str(task), sha256, {}))
    # An offline run cannot use artifacts of others: it names them.
    artifact = wandb.Artifact(f"analysis-{run.id}", type="analysis", metadata={"models": used})
    for file in sorted(report.parent.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            artifact.add_file(str(file))
    if (report.parent / "prediction").is_dir():
        artifact.add_dir(str(report.parent / "prediction"), name="prediction")
    run.log_artifact(artifact)


def _log_model(inner: WandbLogger, card: Mapping[str, Any], folder: Path) -> None:
    import wandb

    run: wandb.Run = inner.experiment  # type: ignore[assignment]
    task = str(card.get("task", "model"))
    known = {name: card.get(name) for name in ("task", "model", "seed", "sha256", "base_sha256", "accuracy")}
    run.log_artifact(_model_artifact(task, card["sha256"], known))
    if inner.keeps_weights:
        weights = wandb.Artifact(
            f"weights-{model_artifact_name(task, card['sha256'])}", type="weights", metadata=known
        )
        for file in ("model.safetensors", "head.safetensors", "card.json"):
            if (folder / file).is_file():
                weights.add_file(str(folder / file))
        run.log_artifact(weights)


def _model_artifact(task: str, sha256: str, metadata: Mapping[str, Any]) -> "wandb.Artifact":
    """Make the artifact that stands for a model: the same content wherever it is made, so that W&B links the runs."""
    import wandb

    artifact = wandb.Artifact(model_artifact_name(task, sha256), type="model", metadata=dict(metadata))
    with artifact.new_file("sha256.txt") as file:
        file.write(f"{sha256}\n")
    return artifact


def _log_to_mlflow(inner: MLFlowLogger, analysis: Analysis, report: Path) -> None:
    client, run = inner.experiment, inner.run_id
    for file in sorted(report.parent.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            client.log_artifact(run, str(file))
    for name, figure in figures_of(analysis).items():
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / f"{Path(name).name}.html"
            figure.write_html(page, include_plotlyjs="cdn")
            client.log_artifact(run, str(page), "figures")


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Make every cell a number or a text: W&B takes columns of one type."""
    plain = frame.copy()
    for name in frame.columns:
        if frame[name].dtype == object:
            plain[name] = frame[name].map(lambda value: None if value is None else str(value))
    return plain
