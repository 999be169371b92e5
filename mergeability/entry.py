"""What `train.py` and `analyze.py` share: names for folders, errors in one sentence, a ledger of jobs.

The only module of the package that sees Hydra and OmegaConf.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mergeability.errors import UserError
from mergeability.files import read_json

logger = logging.getLogger(__name__)

# Part of a config but not of what a checkpoint depends on: they only suggest values for `training`, or comment.
_ADVICE = {
    "task": ("epochs", "expected_accuracy"),
    "model": ("learning_rate", "batch_size", "base_command"),
    "trainer": ("accelerator", "log_every_n_steps"),
}


# Settings that came later, with the values that every training before had: left out where they are these, so that
# what was trained then is still found.
_LATER: dict[str, dict[str, Any]] = {
    "training": {"optimizer": "adamw", "momentum": 0.9, "compile": False},
    # Each device has a batch of its own: two devices are another training than one.
    "trainer": {"devices": 1},
}


def number_name(value: float | int | str) -> str:
    """Name a number so that 1, 1.0 and 1e0 share a name and different numbers never do."""
    return repr(float(value)).removesuffix(".0")


def penalty_folder(name: str, strength: float | int, variant: str | None = None) -> str:
    """Name a training's folder: `<penalty>-<λ>`, `none-0` whatever the penalty for λ = 0, `+<variant>` after it."""
    folder = f"{name}-{number_name(strength)}" if float(strength) != 0 else "none-0"
    return f"{folder}+{variant}" if variant else folder


def train_command(
    model: str, penalty: str, strength: float | int, seed: int, variant: str | None, root: str
) -> str:
    """Write the command that trains models into the folder an analysis looks in, up to its `task=`."""
    words = [f"model={model}"]
    if float(strength) != 0:
        words += [f"reg={penalty}", f"reg.lambda={number_name(strength)}"]
    words += [f"seed={seed}"] if seed else []
    words += [f"variant={variant}"] if variant else []
    words += [f"paths.root={root}"] if root != "outputs" else []
    return f"python train.py -m {' '.join(words)}"


OmegaConf.register_new_resolver("penalty_folder", penalty_folder, replace=True)
OmegaConf.register_new_resolver("train_command", train_command, replace=True)


def plain(config: Any) -> Any:
    """Turn a config node into plain containers with every interpolation resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return everything a checkpoint depends on, as plain containers.

    Raises:
        UserError: a strength was given without a penalty.
    """
    found: dict[str, Any] = plain(cfg.settings)
    for group, names in _ADVICE.items():
        found[group] = {name: value for name, value in (found[group] or {}).items() if name not in names}
    for group, former in _LATER.items():
        for name, value in former.items():
            if found[group] is not None and found[group].get(name) == value:
                del found[group][name]
    strength = found["reg"].get("lambda")
    if found["reg"]["name"] == "none" and strength != 0:
        raise UserError(
            f"reg=none is plain fine-tuning: it takes no reg.lambda={strength}. Choose a penalty with reg=…."
        )
    if strength == 0:
        found["reg"] = {"name": "none", "lambda": 0}
    return found


def fine_tune(cfg: DictConfig) -> None:
    """Train the model a configuration of `train.py` describes, unless it is done; its `run` does the training.

    Raises:
        UserError: there is no base model, or a model with other settings lies there; whatever `run` raises.
    """
    from hydra.utils import instantiate

    from mergeability.finetuning.finished import finished_card

    folder, known = Path(cfg.folder), settings(cfg)
    if cfg.base is not None:
        known["base_sha256"] = base_hash(cfg)
    if cfg.get("source") is not None:
        known["source_sha256"] = source_hash(cfg.source)
    if finished_card(folder, known, overwrite=cfg.overwrite):
        logger.info("Already finished: %s (overwrite=true trains again)", folder)
        return
    quiet_lightning()
    with loggers(cfg) as opened:
        train = instantiate(cfg.run, _partial_=True, _convert_="all")
        train(loggers=opened, record=known)


def train_missing(cfg: DictConfig) -> None:
    """Fine-tune the models that an analysis asks for and that are not there, as `train.py` does with these settings.

    Raises:
        UserError: the suite has no tasks to train on; whatever `fine_tune` raises.
    """
    if not cfg.train.missing:
        return
    if "tasks" not in cfg.suite:
        raise UserError(
            f"train.missing=true fine-tunes on a suite's tasks, and suite={cfg.suite.name} has none."
        )
    job = _training(cfg)
    wanted = None if cfg.pairs is None else {str(task) for pair in cfg.pairs for task in pair}
    names = [name for name in cfg.suite.tasks if wanted is None or name in wanted]
    for number, name in enumerate(names, start=1):
        # The suite's own version of the task, which may have fewer images than conf/task says.
        job.task = cfg.suite.tasks[name]
        if "csv" in (job.get("logger") or {}):
            job.logger.csv.name = f"csv/{name}"
        logger.info("Model %d of %d: %s with %s", number, len(names), name, cfg.suite.trained)
        fine_tune(job)


def _training(cfg: DictConfig) -> DictConfig:
    """Compose the configuration of `train.py` that leaves models where this analysis looks for them."""
    job = compose("train", overrides=list(cfg.train.settings))
    OmegaConf.set_struct(job, False)
    for name in ("model", "reg", "paths", "logger", "seed", "variant"):
        job[name] = cfg[name]
    return job


def objectives(cfg: DictConfig, analysis: Any) -> float | tuple[float, ...] | None:
    """Return what a sweeper that searches is to optimise: the means named by `objectives`; None where it names none.

    Raises:
        UserError: an unknown name, or one that this analysis has not measured.
    """
    if not cfg.objectives:
        return None
    from mergeability.reporting.tables import objective

    values = tuple(objective(analysis, name) for name in cfg.objectives)
    return values[0] if len(values) == 1 else values


def run_folder() -> Path:
    """Return the folder of the present job."""
    return Path(HydraConfig.get().runtime.output_dir)


def shown_path(path: Path) -> str:
    """Return a path as a person types it: relative to where they are, if it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def track_analysis(cfg: DictConfig, analysis: Any, report: Path) -> None:
    """Log an analysis to Weights & Biases where `logger` names it."""
    node = (cfg.get("logger") or {}).get("wandb")
    if node is not None:
        from mergeability.reporting.tracking import log_analysis

        log_analysis(run_folder(), node.project, node.group, analysis, report)


# What Lightning says on every fit of a small model, by message: true, and of no use to the person watching.
_LIGHTNING_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The number of training batches .* is smaller than the logging interval",
    r"The '.*_dataloader' does not have many workers",
    r"Checkpoint directory .* exists and is not empty",
)


def quiet_lightning() -> None:
    """Keep Lightning's tips and harmless warnings from the terminal."""
    import lightning.pytorch  # noqa: F401  (it sets its level when imported)

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _LIGHTNING_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def loggers(cfg: DictConfig) -> Iterator[list[Any]]:
    """Make the chosen loggers and close them afterwards, so that each job of a sweep has its own W&B run."""
    from hydra.utils import instantiate

    made = [instantiate(node) for node in (cfg.get("logger") or {}).values() if node is not None]
    try:
        yield made
    finally:
        if "wandb" in (cfg.get("logger") or {}):
            import wandb

            wandb.finish()


def examine(cfg: DictConfig) -> None:
    """Look the task's images over, and leave the report in the run folder.

    Raises:
        UserError: something is wrong with them.
    """
    from hydra.utils import instantiate

    from mergeability.data.doctor import examine

    examine(instantiate(cfg.task, _convert_="all"), run_folder())


def base_hash(cfg: DictConfig) -> str:
    """Return the hash of the base model a training starts from, making it first where there is none.

    It is made of published weights, of a file, or of a seed.

    Raises:
        UserError: there is no base model and none to fetch.
    """
    folder = Path(cfg.base)
    card = read_json(folder / "card.json")
    pretrained = cfg.model.get("pretrained")
    if card is None and pretrained is None and cfg.model.get("base_command"):
        raise UserError(f"No base model at {folder}. Run: {cfg.model.base_command}")
    # Before anything heavy is imported: most often it is there, and of the weights asked for.
    if card is None or card.get("settings", {}).get("pretrained", pretrained) != pretrained:
        from hydra.utils import instantiate

        from mergeability.models.base import check_origin, fetch_base

        model = instantiate(cfg.model, _convert_="all")
        card = card or fetch_base(folder, model)
        check_origin(folder, card, model)
    return card["sha256"]


def source_hash(source: str) -> str:
    """Return the hash of a model from elsewhere, by content: it may lie in another place next time."""
    from mergeability.checkpoints import file_hash
    from mergeability.hub import find_weights

    return file_hash(find_weights(source))


@dataclass(frozen=True)
class Job:
    """How one job ended: its overrides, its folder, and the sentence it failed with, if it did."""

    overrides: tuple[str, ...]
    folder: Path
    error: str | None


class Ledger(Callback):
    """Remember how each job of a sweep ended, and refresh the sweep's summary after each.

    Hydra turns an exception in a callback into a warning and skips `on_multirun_end` after a failed job, so
    `run` below looks at this ledger and sees to the exit code.
    """

    jobs: list[Job] = []  # noqa: RUF012  (one ledger a process: Hydra makes the instances)
    summary_failed = False
    summary_page: Path | None = None

    def __init__(self, summary: str | None = None, beside: str | None = None) -> None:
        # The dotted name of a function (sweep folder, finished job folders, earlier ones beside them), imported only
        # when it is needed; and the folder of an earlier sweep whose jobs are summarised with these.
        self.summary, self.beside = summary, beside
        self.total: int | None = None
        self.began = time.monotonic()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the jobs to come; keep what Optuna's parts say while they are imported from the terminal."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message="Deprecated API features detected")
        self.total, self.began = _count_jobs(config), time.monotonic()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the job."""
        failed = job_return.status != JobStatus.COMPLETED
        raised = job_return._return_value
        error = str(_user_error(raised) or f"{type(raised).__name__}: {raised}") if failed else None
        if failed and not isinstance(raised, UserError | HydraException | OmegaConfBaseException):
            # A defect: in a sweep Hydra shows the traceback of the first failed job only.
            traceback.print_exception(raised)
        overrides = tuple(job_return.overrides or ())
        folder = Path(config.hydra.runtime.output_dir)
        Ledger.jobs.append(Job(overrides, folder, error))
        finished = [ended.folder for ended in Ledger.jobs if ended.error is None]
        if self.total is not None and self.total > len(Ledger.jobs):
            logger.info("%s", _remaining(len(Ledger.jobs), self.total, time.monotonic() - self.began))
        if config.hydra.mode == RunMode.MULTIRUN and self.summary is not None and finished:
            earlier = sorted(Path(self.beside).rglob("run.json")) if self.beside is not None else []
            Ledger.summary_failed = True
            Ledger.summary_page = get_method(self.summary)(
                Path(config.hydra.sweep.dir), finished, beside=[found.parent for found in earlier]
            )
            Ledger.summary_failed = False


def _count_jobs(config: DictConfig) -> int | None:
    """Say how many jobs a sweep has; None where its sweeper decides as it goes."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return None
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # As the sweeper itself does it: what is typed replaces what `hydra.sweeper.params` says.
    given = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    return sum(len(batch) for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None))


def _remaining(ended: int, total: int, seconds: float) -> str:
    minutes = round(seconds / ended * (total - ended) / 60)
    return f"{ended} of {total} jobs ended; about {minutes // 60} h {minutes % 60:02d} min left at the pace so far."


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra entry point: errors in one sentence, failed jobs listed, an exit code that tells the truth.

    Hydra is asked for whole exceptions and does not get to print its own version of them, which shows a
    traceback for what a user can cause. Whoever sets HYDRA_FULL_ERROR gets the traceback of everything.
    """
    verbose = bool(os.environ.setdefault("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.captureWarnings(True)
    code = 0
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What is finished is kept: start the same command again.\n")
        code = 130
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if verbose:
            traceback.print_exception(error)
        sys.stderr.write(f"Error: {_user_error(error) or _without_search_path(error)}\n")
        code = 1
    except ValueError as error:
        if verbose or not _raised_by_hydra(error):
            raise
        sys.stderr.write(f"Error: {error}\n")
        code = 1
    finally:
        failed = _close_sweep()
    if code or failed or Ledger.summary_failed:
        sys.exit(code or 1)


def _user_error(error: BaseException | None) -> UserError | None:
    """Find the user error behind an exception: Hydra's `instantiate` wraps what the called function raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _raised_by_hydra(error: BaseException) -> bool:
    """Say whether Hydra itself refused something, such as `predictor=null`, rather than a job."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").split(".")[0] == "hydra"


def _without_search_path(error: Exception) -> str:
    """Keep what Hydra says about a wrong choice and what there is, not where it looked; name a missing extra."""
    sentence = str(error).split("\nConfig search path")[0].rstrip()
    if "hydra/sweeper/optuna" in sentence:
        return "Searching needs the Optuna sweeper: uv pip install 'mergeability[sweep]'."
    return sentence


def _close_sweep() -> int:
    """Say where the sweep's summary is and which of its jobs failed; return how many did."""
    if Ledger.summary_page is not None:
        sys.stdout.write(f"Summary of the sweep: {shown_path(Ledger.summary_page)}\n")
    failed = [ended for ended in Ledger.jobs if ended.error is not None]
    if len(Ledger.jobs) > 1 and failed:
        sys.stderr.write(f"{len(failed)} of {len(Ledger.jobs)} jobs failed:\n")
        for ended in failed:
            sys.stderr.write(f"  {' '.join(ended.overrides)}: {ended.error}\n")
    return len(failed)
