"""Stop using a logger after its first failure, with one warning, while the run continues."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from mergeability.errors import one_line

logger = logging.getLogger(__name__)
# Where tracking packages define the exceptions that none of Python's own covers. Looked up in what is imported already.
_ERRORS = {
    "wandb.errors": ("Error",),
    "mlflow.exceptions": ("MlflowException",),
    "comet_ml.exceptions": ("CometException",),
}


def tracking_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that tracking services raise for refused requests, lost connections and full disks.

    Exceptions of `wandb`, `mlflow` and `comet_ml` are included if the package is already imported.

    Returns:
        Exception classes, for an `except` clause.

    Examples:
        >>> from mergeability.reporting.tracking import tracking_errors
        >>> OSError in tracking_errors(), KeyError in tracking_errors()
        (True, False)
    """
    found: list[type[Exception]] = [OSError, ValueError, TypeError, RuntimeError]
    for module, names in _ERRORS.items():
        found += [
            getattr(sys.modules[module], name) for name in names if hasattr(sys.modules.get(module), name)
        ]
    return tuple(found)


class Guarded(Logger):
    """Forward all calls to a Lightning logger; after its first failure, warn once and stop using it.

    Args:
        inner: the logger.
        name: of the logger in the warning, such as `mlflow`.

    Examples:
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> from mergeability.reporting.tracking import Guarded
        >>> def fail():
        ...     raise OSError("No space left on device")
        >>> guarded = Guarded(DummyLogger(), "dummy")
        >>> guarded.attempt(lambda: "passed on"), guarded.lost
        ('passed on', False)
        >>> guarded.attempt(fail), guarded.lost
        (None, True)
    """

    def __init__(self, inner: Logger, name: str) -> None:
        super().__init__()
        self.inner, self.title, self.lost = inner, name, False

    def attempt(self, call: Callable[[], Any]) -> Any:
        """Return the result of `call`; None if it fails, or if the logger has failed before."""
        if self.lost:
            return None
        try:
            return call()
        except tracking_errors() as error:
            self.lost = True
            logger.warning(
                "logger=%s failed and is no longer used in this run: %s.", self.title, one_line(error)
            )
        return None

    @property
    def name(self) -> str | None:
        """The name of the experiment in the logger."""
        return self.attempt(lambda: self.inner.name)

    @property
    def version(self) -> int | str | None:
        """The name of the run in the logger."""
        return self.attempt(lambda: self.inner.version)

    @property
    def save_dir(self) -> str | None:
        """The folder that the logger writes into."""
        return self.attempt(lambda: self.inner.save_dir)

    @property
    def experiment(self) -> Any:
        """The object that the logger wraps, such as a W&B run."""
        return self.attempt(lambda: self.inner.experiment)  # type: ignore[attr-defined]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Log each number under its name."""
        self.attempt(lambda: self.inner.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log a configuration."""
        self.attempt(lambda: self.inner.log_hyperparams(params, *args, **kwargs))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Tell the logger that a checkpoint has been written."""
        self.attempt(lambda: self.inner.after_save_checkpoint(checkpoint_callback))

    def save(self) -> None:
        """Write pending records."""
        self.attempt(self.inner.save)

    def finalize(self, status: str) -> None:
        """End the logger's run as `success` or `failed`."""
        self.attempt(lambda: self.inner.finalize(status))
