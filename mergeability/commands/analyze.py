"""Implement `analyze.py`: train missing models, run the analysis, and write, log and print its results."""

import copy
import logging
import shlex
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mergeability.commands.folders import forget_merges, run_folder, shown_path
from mergeability.commands.loggers import check_packages, open_loggers
from mergeability.commands.record import plain
from mergeability.commands.run import prepare
from mergeability.commands.settings import check_settings
from mergeability.commands.train import fine_tune
from mergeability.context import Run, check_workers, cores
from mergeability.errors import UserError
from mergeability.progress import Progress, track

if TYPE_CHECKING:
    from mergeability.reporting.tracking import Guarded

logger = logging.getLogger(__name__)


def job(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run the analysis described by the configuration; write its tables and report to the run folder."""
    prepare()
    return analyse(cfg)


def analyse(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run the analysis described by a configuration of `analyze.py`; write its tables and report to the run folder.

    Returns:
        What a sweeper that searches is to optimise; None if `objectives` names nothing.
    """
    check_settings(cfg)
    check_packages(cfg.get("logger"))
    check_workers(cfg.workers, cores())
    train_missing(cfg)
    # Imported here, so that `--help` and errors in options do not wait for heavy imports.
    from hydra.utils import instantiate

    from mergeability.pipeline.run import analyse as run_analysis
    from mergeability.reporting.result_files import save
    from mergeability.reporting.terminal import show

    # The tables in the run folder are the CSV files of an analysis.
    with open_loggers(cfg, without=("csv",)) as opened:
        request = instantiate(cfg.analysis, _convert_="all", folder=run_folder())
        if not (request.merging.keeps and request.merges):
            forget_merges()
        found = run_analysis(request, _progress(opened), facts=_facts(cfg))
        report = save(found, run_folder())
        show(found)
        if request.merging.keeps and (run_folder() / "merged").is_dir():
            logger.info("Merged models: %s", shown_path(run_folder() / "merged"))
        logger.info("Report: %s", shown_path(report))
        # Last, so that the report exists and its path is logged even if tracking fails.
        if opened:
            from mergeability.reporting.tracking import log_analysis

            log_analysis(opened, found, report)
    return objectives(cfg, found)


def _facts(cfg: DictConfig) -> dict[str, Any]:
    """Return what `run.json` records about the request: the seed, the command and the whole configuration."""
    overrides = HydraConfig.get().overrides
    # Of a sweep, the command of the one job.
    of_hydra = [one for one in overrides.hydra if one.startswith("hydra.run.")]
    command = shlex.join(["python", "analyze.py", *overrides.task, *of_hydra])
    return {"seed": cfg.seed, "command": command, "config": plain(cfg)}


def train_missing(cfg: DictConfig) -> None:
    """Fine-tune the missing models of an analysis, as `train.py` does with the settings in `train.settings`.

    Raises:
        UserError: the suite has no tasks to train on, or a training fails.
    """
    if not cfg.train.missing:
        return
    if "tasks" not in cfg.suite:
        raise UserError(
            f"train.missing=true trains on the tasks of a suite, but suite={cfg.suite.name} contains no"
            " tasks."
        )
    job = _training(cfg)
    wanted = None if cfg.pairs is None else {str(task) for pair in cfg.pairs for task in pair}
    names = [name for name in cfg.suite.tasks if wanted is None or name in wanted]
    jobs = []
    for name in names:
        # The suite's version of the task, which may have fewer images than the one in conf/task.
        job.task = cfg.suite.tasks[name]
        if "csv" in (job.get("logger") or {}):
            job.logger.csv.name = f"csv/{name}"
        jobs.append(copy.deepcopy(job))
    if cfg.workers == 1:
        for number, (name, one) in enumerate(zip(names, jobs, strict=True), start=1):
            logger.info("Model %d of %d: %s with %s", number, len(names), name, cfg.suite.trained)
            fine_tune(one)
        return
    # Resolved here, because workers have no access to Hydra's job. Their progress bars would overwrite each other.
    resolved = [{**plain(one), "progress": None} for one in jobs]
    logger.info("Training %d models with %s, using workers=%s", len(names), cfg.suite.trained, cfg.workers)
    run = Run(progress=track, workers=cfg.workers)
    for name, card in zip(names, run.map(_fine_tune, resolved, description="fine-tuning"), strict=True):
        if card is not None:
            logger.info("%s: test accuracy %.1f %%", name, 100 * card["accuracy"]["test"])


def _fine_tune(job: dict[str, Any]) -> dict[str, Any] | None:
    return fine_tune(OmegaConf.create(job))


def _training(cfg: DictConfig) -> DictConfig:
    """Compose the configuration of `train.py` that leaves models where this analysis looks for them."""
    job = compose("train", overrides=list(cfg.train.settings))
    OmegaConf.set_struct(job, False)
    for name in ("model", "reg", "paths", "logger", "seed", "variant"):
        job[name] = cfg[name]
    return job


def objectives(cfg: DictConfig, analysis: Any) -> float | tuple[float, ...] | None:
    """Return the averages that `objectives` names, for a sweeper to optimise; None if `objectives` is empty.

    Raises:
        UserError: an unknown name, or one that this analysis has not measured.
    """
    if not cfg.objectives:
        return None
    from mergeability.pipeline.result import objective

    values = tuple(objective(analysis, name) for name in cfg.objectives)
    return values[0] if len(values) == 1 else values


def _progress(opened: "list[Guarded]") -> Progress:
    """Return the progress bar, which also reports to open loggers."""
    if not opened:
        return track
    from mergeability.reporting.tracking import tracked_progress

    return tracked_progress(track, opened)
