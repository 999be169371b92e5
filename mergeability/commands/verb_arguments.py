"""Parse the arguments that `compare`, `predict` and `merge` have in common."""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mergeability.commands.memory import keep_freed_memory, look_for_garbage_less_often
from mergeability.commands.terminal import shown_text
from mergeability.errors import UserError, printable
from mergeability.members import read_value
from mergeability.threads import choose_threads, sample

if TYPE_CHECKING:
    from mergeability.progress import Progress

NO_STORE = "none"
# Measured while the arguments are parsed, so that it takes no extra time.
_BEGAN = sample()


def named_models(models: Sequence[str]) -> Any:
    """Split NAME=PATH into name and path, unless the whole text is the path of an existing file."""
    from mergeability.verbs.sources import named

    found: dict[str, str] = {}
    for model in models:
        name, sign, path = model.partition("=")
        if sign and "/" not in name and not Path(model).exists():
            pair = {name: path}
        else:
            pair = {key: str(value) for key, value in named([model]).items()}
        for key, value in pair.items():
            if key in found:
                raise UserError(
                    f"Two models have the name {key!r}: {found[key]} and {value}. Give different names with"
                    " NAME=PATH."
                )
            found[key] = value
    return found


def by_name(option: str, words: Sequence[str]) -> dict[str, str]:
    """Split NAME=VALUE into name and value.

    >>> by_name("--images", ["cars=photos/cars"])
    {'cars': 'photos/cars'}

    Raises:
        UserError: an argument does not have this form, or a name is repeated.
    """
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (sign and name and value):
            raise UserError(f"Expected {option} NAME=…, where NAME is the name of a model, got {word!r}.")
        if name in found:
            raise UserError(f"{option} is given more than once for {name!r}.")
        found[name] = value
    return found


def classes(words: Sequence[str]) -> dict[str, str | list[str]]:
    """Read class names from a comma-separated list or a file."""
    return {
        name: value if Path(value).expanduser().is_file() else [one.strip() for one in value.split(",")]
        for name, value in by_name("--classes", words).items()
    }


def option_values(words: Sequence[str]) -> dict[str, Any]:
    """Parse the options of a method; their values are numbers, booleans or text in YAML's notation.

    >>> option_values(["density=1e-1", "agg=sum"])
    {'density': 0.1, 'agg': 'sum'}

    Raises:
        UserError: an argument does not have this form, or a value is not in YAML's notation.
    """
    found = {}
    for name, value in by_name("--option", words).items():
        try:
            found[name] = read_value(value)
        except ValueError as error:
            raise UserError(
                f"--option {name}={shown_text(value)}: {error}. Quote text, as in {name}='\"…\"'."
            ) from error
    return found


def store_folder(given: str | None) -> str | None:
    """Return the folder for cached values: the given one, the project's store, or the user's cache."""
    if given is not None:
        return None if given == NO_STORE else given
    project = Path("outputs/store")
    if project.is_dir():
        return str(project)
    from platformdirs import user_cache_dir

    return str(
        Path(os.environ.get("MERGEABILITY_CACHE") or user_cache_dir("mergeability", appauthor=False))
        / "store"
    )


def start_hashing(base: str, models: Sequence[str], store: str | None) -> None:
    """Start to hash files in the background, before PyTorch is imported; hashes in the store are not computed again.

    Only safetensors files are read as they are: others are converted first, and folders are opened later.
    """
    from mergeability.context import cores
    from mergeability.store import Store
    from mergeability.store.noted_hashes import is_noted
    from mergeability.weights.file_hashes import hash_ahead

    kept = Store(store)
    paths = [base, *(model if Path(model).is_file() else model.partition("=")[2] for model in models)]
    files = [path for path in paths if path.endswith(".safetensors") and Path(path).is_file()]
    # One core is left to the imports.
    hash_ahead((path for path in files if not is_noted(path, kept)), threads=max(1, cores() - 1))


def progress() -> "Progress":
    """Return the progress bar for the terminal."""
    from mergeability.progress import track

    return track


def say_report(path: Path | None, as_json: bool) -> None:
    """Print the path of a report; use standard error if JSON is written to standard output."""
    if path is not None:
        click.echo(f"Report: {printable(str(path))}", err=as_json)


@contextlib.contextmanager
def sentences(*, computes: bool = False) -> Iterator[None]:
    """On a user error, exit with one sentence and code 1; show warnings as plain lines.

    Args:
        computes: whether the block computes with torch, which it has to import itself: the number of threads is set.
    """
    from mergeability.commands.search_path import use_own_folders
    from mergeability.commands.terminal import PlainFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    handler.setLevel(logging.WARNING)
    # Libraries that log warnings print them by themselves.
    shown = [logging.getLogger(name) for name in ("mergeability", "py.warnings")]
    for one in shown:
        one.addHandler(handler)
    logging.captureWarnings(True)
    threshold = gc.get_threshold()
    try:
        use_own_folders([])
        if computes:
            from mergeability.context import cores

            choose_threads(_BEGAN, cores())
            look_for_garbage_less_often()
            keep_freed_memory()
        yield
    except UserError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
    except KeyboardInterrupt:
        click.echo("\nInterrupted.", err=True)
        sys.exit(130)
    finally:
        gc.set_threshold(*threshold)
        for one in shown:
            one.removeHandler(handler)


def fail(sentence: str) -> NoReturn:
    """Print an error and exit with code 1."""
    click.echo(f"Error: {shown_text(sentence)}", err=True)
    sys.exit(1)
