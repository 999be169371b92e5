"""Log to Weights & Biases: online with an account, otherwise offline, and never with a login prompt.

Tracking never stops the work: if W&B refuses the account or cannot be reached, a run is logged offline.
"""

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch.loggers as lightning_loggers
from lightning.pytorch.utilities import rank_zero_only

from mergeability.errors import one_line, short
from mergeability.reporting.tracking.guard import tracking_errors

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)
_HOST = "api.wandb.ai"
# Seconds that a run waits for W&B at its start before it is logged offline, and at its end for the last uploads.
_PATIENCE = 15
_LAST_UPLOADS = 120
_LONGEST_GROUP, _LONGEST_TAG, _LONGEST_REASON = 128, 64, 160
# Modes that failed in this process: a sweep does not wait for W&B in every job.
_failed: set[str] = set()


def wandb_mode(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> str:
    """Return `WANDB_MODE` if it is set, `online` if credentials are found, and `offline` otherwise.

    Args:
        environment: variables; credentials are `WANDB_API_KEY`.
        home: folder whose `.netrc` may contain credentials; the user's by default.

    Returns:
        A mode of `wandb.init`.

    Examples:
        >>> from mergeability.reporting.tracking import wandb_mode
        >>> wandb_mode({"WANDB_API_KEY": "key"}), wandb_mode({"WANDB_MODE": "disabled"})
        ('online', 'disabled')
    """
    if environment.get("WANDB_MODE"):
        return environment["WANDB_MODE"]
    if environment.get("WANDB_API_KEY"):
        return "online"
    file = (home or Path.home()) / ".netrc"
    try:
        known = file.is_file() and netrc.netrc(file).authenticators(_HOST) is not None
    except (netrc.NetrcParseError, OSError):
        known = False
    return "online" if known else "offline"


def open_run(folder: Path | str, *, mode: str | None = None, **options: Any) -> "wandb.Run | None":
    """Open a W&B run; if that fails, open it offline.

    The run is independent of other runs open in this process.

    Args:
        folder: where its files go, in `wandb/`.
        mode: `online`, `offline`, `shared` or `disabled`; the result of `wandb_mode` when None.
        options: of `wandb.init`.

    Returns:
        The run; None, with a warning, if it cannot be opened offline either.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.reporting.tracking import open_run
        >>> with TemporaryDirectory() as folder, open_run(folder, mode="disabled", config={"seed": 0}) as run:
        ...     run.log({"accuracy": 0.9})
        ...     seed = run.config["seed"]
        >>> seed
        0
    """
    import wandb
    import wandb.errors

    os.environ.setdefault("WANDB_SILENT", "true")
    limits = wandb.Settings(init_timeout=_PATIENCE, login_timeout=_PATIENCE, finish_timeout=_LAST_UPLOADS)
    options |= {"dir": folder, "reinit": "create_new", "settings": limits}
    mode = mode or wandb_mode()
    for tried in dict.fromkeys([mode, "offline"]):
        if tried in _failed and tried != "offline":
            continue
        try:
            return wandb.init(mode=tried, **options)  # type: ignore[arg-type]
        except tracking_errors() as error:
            _failed.add(tried)
            if os.environ.get("WANDB_MODE") == tried:
                # W&B reads the variable whatever mode it is given, and refuses a wrong one again.
                os.environ["WANDB_MODE"] = "offline"
            if tried == "offline":
                logger.warning("Weights & Biases is not used in this run: %s.", one_line(error))
            else:
                logger.warning(
                    "Weights & Biases cannot be used with mode %s (%s). This run and later runs of this"
                    " command are logged offline.",
                    tried,
                    short(one_line(error), _LONGEST_REASON),
                )
    return None


class WandbLogger(lightning_loggers.WandbLogger):
    """Log one W&B run through Lightning's logger.

    Attributes:
        keeps_weights: whether the weights of trained models are logged with the run.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.reporting.tracking import WandbLogger, open_run
        >>> with TemporaryDirectory() as folder:
        ...     logger = WandbLogger(save_dir=folder, experiment=open_run(folder, mode="disabled"))
        ...     logger.log_hyperparams({"seed": 0})
        ...     seed = logger.experiment.config["seed"]
        ...     logger.end(failed=False)
        >>> seed, logger.keeps_weights
        (0, False)
    """

    keeps_weights = False

    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration; warn about settings that differ from those of a resumed run."""
        known = dict(self.experiment.config) if rank_zero_only.rank == 0 else {}
        changed = [name for name, value in dict(params).items() if name in known and known[name] != value]
        if changed:
            logger.warning(
                "The W&B run %s had other settings, which are overwritten: %s. Remove logger.wandb.id to log a "
                "separate run.",
                self.version,
                ", ".join(sorted(changed)),
            )
        super().log_hyperparams(params)

    def end(self, *, failed: bool) -> Path | None:
        """End the run; return the folder of its files if they must be uploaded later."""
        run = self._experiment
        if run is None or rank_zero_only.rank != 0:
            return None
        offline, folder = bool(getattr(run, "offline", False)), Path(run.dir).parent
        run.finish(exit_code=1 if failed else 0)
        return folder if offline else None


def wandb_logger(
    folder: str,
    project: str = "mergeability",
    *,
    group: str | None = None,
    name: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    entity: str | None = None,
    id: str | None = None,  # noqa: A002
    resume: Literal["allow", "never", "must", "auto"] | bool | None = None,
    mode: Literal["online", "offline", "shared", "disabled"] | None = None,
    log_model: bool = False,
    **options: Any,
) -> WandbLogger | None:
    """Create a Lightning logger for one W&B run that writes its files to `folder`.

    Args:
        folder: where its files go.
        project: of W&B.
        group: of the run; jobs of one sweep share it.
        name: of the run.
        job_type: `train`, `analyze` or `summary`.
        tags: of the run; those that are None are left out.
        notes: of the run.
        entity: a user or team; the account's default when None.
        id: of the run, to resume it.
        resume: whether to resume a run of this id.
        mode: see `open_run`.
        log_model: whether the weights of a trained model are logged as an artifact.
        options: further arguments of `wandb.init`.

    Returns:
        The logger; None if W&B cannot be used at all.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.reporting.tracking import wandb_logger
        >>> with TemporaryDirectory() as folder:
        ...     logger = wandb_logger(folder, mode="disabled", log_model=True)
        ...     logger.log_metrics({"accuracy": 0.9})
        ...     logger.end(failed=False)
        >>> type(logger).__name__, logger.keeps_weights
        ('WandbLogger', True)
    """
    # Of several processes that train one model, the first one logs.
    run = None
    if rank_zero_only.rank == 0:
        run = open_run(
            folder,
            mode=mode,
            project=project,
            group=short(group, _LONGEST_GROUP) if group else None,
            name=name,
            job_type=job_type,
            tags=[short(str(tag), _LONGEST_TAG) for tag in tags or () if tag is not None],
            notes=notes,
            entity=entity,
            id=id,
            resume=resume,
            **options,
        )
        if run is None:
            return None
    made = WandbLogger(save_dir=folder, project=project, group=group, name=name, experiment=run)
    made.keeps_weights = log_model
    return made
