"""Open the loggers of a configuration, and close them at the end of the run."""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from mergeability.commands.folders import shown_path
from mergeability.commands.naming import group_name
from mergeability.commands.record import plain
from mergeability.errors import UserError, one_line

if TYPE_CHECKING:
    from mergeability.reporting.tracking import Guarded

logger = logging.getLogger(__name__)
# Loggers of packages that the project does not bring: the package to be found, and what installs it.
_PACKAGES = {
    "tensorboard": ("tensorboard", "'mergeability[tensorboard]'"),
    "mlflow": ("mlflow", "'mergeability[mlflow]'"),
    "comet": ("comet_ml", "comet-ml"),
    "litlogger": ("litlogger", "litlogger"),
}
# By default MLflow retries an unreachable server for minutes, and needs a database. File stores, which need no more
# than `mlflow-skinny`, must be enabled explicitly.
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


@contextlib.contextmanager
def open_loggers(cfg: DictConfig, *, without: tuple[str, ...] = ()) -> Iterator[list["Guarded"]]:
    """Create the loggers named in `logger`, log the configuration, and close the loggers at the end.

    They record that the run failed if the block raises an error, and that it succeeded otherwise. A logger that cannot
    be opened or that fails later is dropped with a warning, so that tracking never stops a run.

    Args:
        cfg: the configuration of the job.
        without: names of loggers to skip.

    Raises:
        UserError: the package of a logger is not installed, before anything has been computed.
    """
    nodes = {name: node for name, node in (cfg.get("logger") or {}).items() if node and name not in without}
    check_packages(nodes)
    opened = _opened(nodes)
    for one in opened:
        one.log_hyperparams(plain(cfg))
    failed = True
    try:
        yield opened
        failed = False
    finally:
        _end(opened, failed=failed)


def log_sweep(cfg: DictConfig, folder: Path, page: Path) -> None:
    """Log the summary of a sweep as a separate run in the same group as the sweep's jobs.

    Args:
        cfg: the configuration of the command, before any job.
        folder: folder of the sweep.
        page: the summary's page.
    """
    nodes = {}
    for name, node in (cfg.get("logger") or {}).items():
        if node is None or name not in ("wandb", "mlflow"):
            continue
        # Settings that refer to a job are undefined here.
        given = OmegaConf.to_container(node, resolve=False)
        assert isinstance(given, dict)
        nodes[name] = {key: value for key, value in given.items() if "${" not in str(value)}
    group = group_name(folder)
    about = {"group": group, "job_type": "summary"}
    if "wandb" in nodes:
        nodes["wandb"] |= {**about, "folder": str(folder), "name": f"summary of {group}"}
    if "mlflow" in nodes:
        uri = OmegaConf.select(cfg, "logger.mlflow.tracking_uri")
        nodes["mlflow"] |= {"tags": about, "tracking_uri": uri, "run_name": f"summary of {group}"}
    opened = _opened(nodes)
    if opened:
        from mergeability.reporting.tracking import log_summary

        log_summary(opened, page)
        _end(opened, failed=False)


def check_packages(names: Iterable[object] | None) -> None:
    """Check that the packages of the named loggers are installed.

    Raises:
        UserError: one is missing.
    """
    for name in names or ():
        package, extra = _PACKAGES.get(str(name), ("", ""))
        if package and package not in sys.modules and importlib.util.find_spec(package) is None:
            raise UserError(
                f"logger={name} needs the package {package}, which is not installed. "
                f"Run: uv pip install {extra}, or choose another logger."
            )


def _opened(nodes: dict) -> list["Guarded"]:
    if not nodes:
        return []
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from mergeability.reporting.tracking import Guarded, tracking_errors

    for name, value in _MLFLOW.items():
        os.environ.setdefault(name, value)
    # It warns twice about a new experiment.
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
    opened = []
    for name, node in nodes.items():
        try:
            made = instantiate(node, _convert_="all")
        except InstantiationException as error:
            if not isinstance(error.__cause__, tracking_errors()):
                raise
            logger.warning("logger=%s cannot be used in this run: %s.", name, one_line(error.__cause__))
            continue
        if made is not None:
            opened.append(Guarded(made, str(name)))
    return opened


def _end(opened: list["Guarded"], *, failed: bool) -> None:
    if not opened:
        return
    from mergeability.reporting.tracking import WandbLogger

    for one in opened:
        inner = one.inner
        if isinstance(inner, WandbLogger):
            # Close the logger even if something could not be logged, so that earlier values are kept.
            one.lost = False
            folder = one.attempt(lambda inner=inner: inner.end(failed=failed))
            if folder is not None:
                logger.info(
                    "The W&B run was logged offline. Upload it with: wandb sync %s", shown_path(folder)
                )
        else:
            one.finalize("failed" if failed else "success")
