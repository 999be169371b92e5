"""Weights & Biases without surprises: online with an account, offline without one, never a prompt."""

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

    from mergeability.reporting.summaries import Analysis

logger = logging.getLogger(__name__)
_HOST = "api.wandb.ai"


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


def wandb_logger(folder: str, project: str, group: str | None = None) -> "WandbLogger":
    """Make a Lightning logger for one W&B run whose files go to `folder`."""
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(save_dir=folder, project=project, group=group, mode=wandb_mode())


def log_analysis(folder: Path, project: str, group: str | None, analysis: "Analysis", report: Path) -> None:
    """Log an analysis as one W&B run: its tables, the scores of every predictor and its report."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    records = analysis.prediction.records if analysis.prediction is not None else []
    with wandb.init(
        dir=folder,
        project=project,
        group=group,
        job_type="analyze",
        mode=wandb_mode(),  # type: ignore[arg-type]
        config=dict(analysis.run.get("config", {})),
    ) as run:
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
