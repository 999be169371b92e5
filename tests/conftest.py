"""Shared by several groups of tests: commands run inside this process, and one small trained suite."""

import collections
import contextlib
import copy
import dataclasses
import fcntl
import functools
import gc
import inspect
import io
import logging
import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import yaml

# Of each function, so many calls have their shapes and types checked: in each test, or in each file of tests of whole
# commands. A study calls some functions ten thousand times with arguments of one kind, and checking all of these took a
# quarter of the time of the tests.
CHECKED_CALLS = 20
# A function inside another is a new one each time it is defined, and its checks are compiled anew.
CHECKED_INNER_CALLS = 3
WHOLE_COMMANDS = ("commands", "pipeline", "reporting", "store", "test_readme.py")
_calls: collections.Counter[types.CodeType] = collections.Counter()
_jaxtyped = jaxtyping.jaxtyped
_last: list[Path | None] = [None]  # the file of the last test


def _sampled(*, typechecker: object) -> Callable[[Any], Any]:
    """Decorate as `jaxtyping.jaxtyped` does, but check the first calls only."""
    decorate = _jaxtyped(typechecker=typechecker)

    def decorated(function: Any) -> Any:
        if not inspect.isfunction(function):
            return decorate(function) if inspect.isclass(function) else function
        # Code, and not the function: one that is defined inside another is a new function each time.
        most = CHECKED_INNER_CALLS if "<locals>" in function.__qualname__ else CHECKED_CALLS
        if _calls[function.__code__] >= most:
            return function
        checked = decorate(function)

        @functools.wraps(function)
        def call(*arguments: object, **options: object) -> object:
            if _calls[function.__code__] >= most:
                return function(*arguments, **options)
            _calls[function.__code__] += 1
            return checked(*arguments, **options)

        return call

    return decorated


# The import hook of pytest's option --jaxtyping-packages looks it up there when a module is imported.
jaxtyping.jaxtyped = _sampled

# Garbage is collected after so many new objects, and not after 700: that took a tenth of the time of commands.
gc.set_threshold(200_000, 10, 10)

# OmegaConf reads with whatever loader has this name; the one in C reads the same language in an eighth of the time.
if yaml.__with_libyaml__:
    yaml.SafeLoader = yaml.CSafeLoader

import mergeability.commands  # noqa: E402, F401  (registers the sets of members that tests compose)

ROOT = Path(__file__).parent.parent
SMOKE_TASKS = ("digits", "letters", "shapes", "orientation")
SMOKE_SIZES = (
    "task.source.train=128",
    "task.source.validation=32",
    "task.source.test=64",
    "training.epochs=1",
)

# Files that take longest, longest first. Workers take files in this order, so none is left alone with a long one.
LONGEST = (
    "test_readme.py",
    "commands/test_ablation_commands.py",
    "pipeline/test_pipeline.py",
    "commands/test_commands.py",
    "commands/test_configs.py",
    "pipeline/test_functional.py",
    "commands/test_merge_commands.py",
    "test_contributing.py",
    "pipeline/test_resnet.py",
    "commands/test_evidence_commands.py",
    "commands/test_prediction_commands.py",
    "pipeline/test_own_models.py",
    "reporting/test_ablation.py",
    "test_exports.py",
    "pipeline/test_importing.py",
    "commands/test_tracking_commands.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays as it is."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Check the first calls of each test anew, and of each file where tests run whole commands."""
    parts = item.path.relative_to(ROOT / "tests").parts if item.path.is_relative_to(ROOT / "tests") else ("",)
    if parts[0] not in WHOLE_COMMANDS or item.path != _last[0]:
        _calls.clear()
    _last[0] = item.path


def pytest_collection_finish() -> None:
    """Exempt what is imported by now from garbage collection, each pass of which would look at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _configurations_composed_once() -> Iterator[None]:
    """Let Hydra read and compose the files of each choice of options once; values are overridden anew every time.

    A command composes twice or three times: to learn whether it is a sweep, and to run. What the files of `conf` give
    for options of groups (`suite=mini`) is kept, and each composition overrides values (`seed=3`) in a copy of its own.
    Other search paths, whose files a test may change, are composed as always. Copies are made by pickle, in a quarter
    of the time of `copy.deepcopy`. Options are parsed once too: a command parses each of its own four times.
    """
    from hydra._internal import config_loader_impl
    from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
    from hydra._internal.defaults_list import DefaultsList, Overrides
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = config_loader_impl.ConfigLoaderImpl
    listed, composed = config_loader_impl.create_defaults_list, loader._compose_config_from_defaults_list
    load, parse = ConfigRepository.load_config, OverridesParser.parse_rule
    lists: dict[tuple, DefaultsList] = {}
    configurations: dict[tuple, bytes] = {}
    read: dict[str, bytes] = {}
    parsed: dict[tuple[str, str], bytes] = {}

    def is_ours(repo: object) -> bool:
        return [one.path for one in repo.get_sources() if one.scheme() == "file"] == [str(ROOT / "conf")]

    def repository(self: object, delegate: object) -> None:
        # A copy of the list of folders is enough, which is all that changes; Hydra's own has whatever is registered.
        self.delegate, self.cache = copy.copy(delegate), {}

    def load_config(self: object, config_path: str) -> object:
        if not is_ours(self):
            return load(self, config_path)
        if config_path not in read:
            found = load(self, config_path)
            # What is registered by a program may change, and where there is no file one may be registered later.
            if found is None or found.path.startswith("structured://"):
                return found
            read[config_path] = pickle.dumps(found)
        return pickle.loads(read[config_path])

    def parse_rule(self: object, s: str, rule_name: str) -> object:
        if (s, rule_name) not in parsed:
            parsed[s, rule_name] = pickle.dumps(parse(self, s, rule_name))
        return pickle.loads(parsed[s, rule_name])

    def create_defaults_list(
        repo: object, config_name: str | None, overrides_list: list, prepend_hydra: bool, skip_missing: bool
    ) -> DefaultsList:
        if not is_ours(repo):
            return listed(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        groups = [one.input_line for one in overrides_list if not any(one is value for value in values)]
        key = (config_name, prepend_hydra, skip_missing, *groups)
        if key not in lists:
            lists[key] = listed(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        kept = lists[key]
        return dataclasses.replace(kept, config_overrides=values)

    def compose_config(self: object, defaults: list, repo: object) -> object:
        if not is_ours(repo):
            return composed(self, defaults, repo)
        key = tuple(dataclasses.astuple(one) for one in defaults)
        if key not in configurations:
            configurations[key] = pickle.dumps(composed(self, defaults, repo))
        return pickle.loads(configurations[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", create_defaults_list)
        patch.setattr(loader, "_compose_config_from_defaults_list", compose_config)
        patch.setattr(CachingConfigRepository, "__init__", repository)
        patch.setattr(ConfigRepository, "load_config", load_config)
        patch.setattr(OverridesParser, "parse_rule", parse_rule)
        yield


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


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Undo what commands of a test do to the root logger, where they are not run by `command`."""
    with logging_restored():
        yield


def run_command(script: str, *arguments: str) -> Ended:
    """Run a command line in this process, where everything heavy is imported already."""
    written = io.StringIO()
    forget_jobs()
    code: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch, logging_restored(), warnings.catch_warnings():
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        # The command `mergeability`, run in this process, says so in a variable for its jobs.
        patch.delenv("MERGEABILITY_COMMAND", raising=False)
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            try:
                if script == "mergeability":
                    # The command notes how it was started, for its messages and its worker processes.
                    patch.setenv("MERGEABILITY_COMMAND", "")
                    import_module("mergeability.__main__").main()
                else:
                    runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
            except SystemExit as stop:
                code = stop.code
    return Ended(int(code or 0), written.getvalue())


@pytest.fixture(scope="session")
def command() -> Callable[..., Ended]:
    """Run `train.py`, `analyze.py` or the command `mergeability` with arguments."""
    return run_command


def in_a_fork(function: Callable[..., None], output: Path, *arguments: object) -> multiprocessing.Process:
    """Call a function in a child of this process, which has everything heavy imported; its output goes to a file.

    It is a real process, with its own signals and exit code. Not for machines with a GPU: PyTorch cannot
    differentiate in a child of a process that has used one.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_forked, args=(function, output, arguments), daemon=True
    )
    with warnings.catch_warnings():
        # Newer Pythons warn of any fork of a process with threads; here none of them holds a lock that is needed.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _forked(function: Callable[..., None], output: Path, arguments: tuple) -> None:
    import torch

    # More threads than one would wait for those of the parent, which a fork does not copy.
    torch.set_num_threads(1)
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with output.open("w", buffering=1) as stream:
        for own in (1, 2):
            os.dup2(stream.fileno(), own)
        sys.stdout = sys.stderr = stream
        function(*arguments)


def forget_jobs() -> None:
    """Forget the sweep of the last command, of which there is one per process."""
    from mergeability.commands import sweep

    sweep.Ledger.current = None


def run_script(script: str, *arguments: str) -> None:
    """Run a command line as Python does; for a child process, since nothing is put back afterwards."""
    forget_jobs()
    sys.argv = [f"{script}.py", *arguments]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")


class FreshProcess:
    """A process that imports everything itself, which takes 6 to 20 s; with the members of `in_a_fork`'s."""

    def __init__(self, output: Path, script: Path, *arguments: object):
        with output.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(script), *map(str, arguments)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        self.pid, self.kill = self._process.pid, self._process.kill

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def join(self, timeout: float | None = None) -> None:
        self._process.wait(timeout)


@pytest.fixture(scope="session")
def fresh() -> type[FreshProcess]:
    """Start a Python script in a process of its own: the file of its output, the script, its arguments."""
    return FreshProcess


@pytest.fixture(scope="module")
def forked() -> Iterator[Callable[..., multiprocessing.Process]]:
    """Start functions in children of this process; none outlives the module."""
    started = []

    def start(function: Callable[..., None], output: Path, *arguments: object) -> multiprocessing.Process:
        started.append(in_a_fork(function, output, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(params=["forked", pytest.param("fresh", marks=pytest.mark.slow)])
def command_process(
    request: pytest.FixtureRequest, forked: Callable[..., multiprocessing.Process]
) -> Callable[..., multiprocessing.Process | FreshProcess]:
    """Start `train.py` or `analyze.py` in another process: the file of its output, the script, its arguments."""
    import torch

    if request.param == "fresh":
        return lambda output, script, *arguments: FreshProcess(output, ROOT / f"{script}.py", *arguments)
    if torch.cuda.is_available():
        pytest.skip("no gradients in a fork of a process that has used a GPU")
    return lambda output, script, *arguments: forked(run_script, output, script, *arguments)


def train_smoke_models(root: Path) -> None:
    """Barely train a base model, and four models from it."""
    where = (f"paths.root={root}", "logger=csv", "progress=null")
    few = ("pretraining.steps=25", "pretraining.images_per_subject=40", "pretraining.batch_size=32")
    ended = run_command("train", "experiment=pretrain_mini", *few, *where)
    assert ended.code == 0, ended.output
    tasks = f"task={','.join(SMOKE_TASKS)}"
    ended = run_command("train", "-m", "model=clip_mini", tasks, *SMOKE_SIZES, *where)
    assert ended.code == 0, ended.output


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `outputs` folder with a barely trained base model and four barely fine-tuned ones.

    One worker trains them; each has a copy that no other writes into.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        root = tmp_path_factory.mktemp("outputs")
        train_smoke_models(root)
        return root
    shared, done = base.parent / "smoke", base.parent / "smoke_is_trained"
    with (base.parent / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(shared, ignore_errors=True)
            train_smoke_models(shared)
            done.touch()
    return Path(shutil.copytree(shared, base / "outputs"))
