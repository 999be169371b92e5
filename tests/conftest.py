"""What tests of several groups share: commands run inside this process, and one small trained suite."""

import contextlib
import io
import logging
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mergeability.commands  # noqa: F401  (registers the sets of members that tests compose)

ROOT = Path(__file__).parent.parent
SMOKE_TASKS = ("digits", "letters", "shapes", "orientation")
SMOKE_SIZES = (
    "task.source.train=128",
    "task.source.validation=32",
    "task.source.test=64",
    "training.epochs=1",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and everything it wrote."""

    code: int
    output: str


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Undo what Hydra does to the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)


def run_command(script: str, *arguments: str) -> Ended:
    """Run a command line in this process, where everything heavy is imported already."""
    from mergeability.commands import sweep

    written = io.StringIO()
    sweep.Ledger.jobs.clear()
    sweep.Ledger.summary_failed, sweep.Ledger.summary_page = False, None
    code: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch, logging_restored(), warnings.catch_warnings():
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            try:
                runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
            except SystemExit as stop:
                code = stop.code
    return Ended(int(code or 0), written.getvalue())


@pytest.fixture(scope="session")
def command() -> Callable[..., Ended]:
    """Run `train.py` or `analyze.py` with arguments."""
    return run_command


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `outputs` folder with a barely trained base model and four barely fine-tuned ones."""
    root = tmp_path_factory.mktemp("outputs")
    where = (f"paths.root={root}", "logger=csv", "progress=null")
    few = ("pretraining.steps=25", "pretraining.images_per_subject=40", "pretraining.batch_size=32")
    ended = run_command("train", "experiment=pretrain_mini", *few, *where)
    assert ended.code == 0, ended.output
    tasks = f"task={','.join(SMOKE_TASKS)}"
    ended = run_command("train", "-m", "model=clip_mini", tasks, *SMOKE_SIZES, *where)
    assert ended.code == 0, ended.output
    return root
