"""Weights & Biases without surprises: online with an account, offline without one, never a prompt.

Tracking never ends the work: where W&B refuses the account or cannot be reached, a run is logged offline.
"""

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    from mergeability.reporting.summaries import Analysis

logger = logging.getLogger(__name__)
_HOST = "api.wandb.ai"
# Seconds that a run waits for W&B before it is logged offline.
_PATIENCE = 15


def wandb_mode(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> str:
    """Return `WANDB_MODE` where it is set, `online` where credentials are found, else `offline`."""
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


def open_run(folder: Path | str, **options: Any) -> "wandb.Run":
    """Open a W&B run; offline if it cannot be opened online.

    Args:
        folder: where its files go, in `wandb/`.
        options: of `wandb.init`.
    """
    import wandb
    import wandb.errors

    os.environ.setdefault("WANDB_SILENT", "true")
    options |= {"dir": folder, "settings": wandb.Settings(init_timeout=_PATIENCE, login_timeout=_PATIENCE)}
    mode = wandb_mode()
    if mode == "online":
        try:
            return wandb.init(mode=mode, **options)
        except (wandb.errors.Error, ValueError, OSError) as error:
            logger.warning(
                "Weights & Biases is not used online (%s). This run is logged offline, in wandb/ of its folder; "
                "`wandb sync` uploads it.",
                " ".join(str(error).split()).rstrip("."),
            )
        mode = "offline"
    return wandb.init(mode=mode, **options)  # type: ignore[arg-type]


def wandb_logger(folder: str, project: str, group: str | None = None) -> "WandbLogger":
    """Make a Lightning logger for one W&B run whose files go to `folder`."""
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.utilities import rank_zero_only

    # Of several processes that train one model, the first one logs.
    run = open_run(folder, project=project, group=group) if rank_zero_only.rank == 0 else None
    return WandbLogger(save_dir=folder, project=project, group=group, experiment=run)


def log_analysis(folder: Path, project: str, group: str | None, analysis: "Analysis", report: Path) -> None:
    """Log an analysis as one W&B run: its tables, the scores of every predictor and its report."""
    import wandb

    records = analysis.prediction.records if analysis.prediction is not None else []
    config = dict(analysis.run.get("config", {}))
    with open_run(folder, project=project, group=group, job_type="analyze", config=config) as run:
        run.log({"pairs": wandb.Table(dataframe=analysis.pairs)})
        if not analysis.models.empty:
            run.log({"models": wandb.Table(dataframe=analysis.models.reset_index())})
        for method in analysis.methods:
            column = f"norm_acc_{method}"
            if column in analysis.pairs:
                run.summary[f"{column}/mean"] = float(analysis.pairs[column].mean())
                run.summary[f"{column}/worst"] = float(analysis.pairs[column].min())
        for record in records:
            # A protocol whose folds are single pairs has a correlation over all of them only.
            r = record["r_mean"] if record["r_mean"] is not None else record["r_beyond_mean"]
            if r is not None:
                name = f"{record['protocol']}/{record['target']}/{record['method']}/{record['predictor']}"
                run.summary[f"r/{name}"] = r
        tables = {} if analysis.prediction is None else analysis.prediction.tables
        for name, frame in {**tables, "scores": analysis.scores}.items():
            if len(frame):
                run.log({f"prediction/{name}": wandb.Table(dataframe=frame)})
        run.log({"report": wandb.Html(report.read_text(encoding="utf-8"), inject=False)})
