"""Write one-sentence messages for errors of Hydra and OmegaConf."""

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mergeability.commands.sets import derived_sets
from mergeability.errors import UserError, did_you_mean, printable, short
from mergeability.members import files, folder, groups, is_group

_NOT_FOUND = re.compile(r"Could not find '([^']*)'")
_OPTIONS = re.compile(r"Available options in '([^']*)':\n((?:\s*[^\n]+\n?)*)")
_NO_KEY = re.compile(r"Could not (?:override|append to|delete) ?(?:config)?\.? ?'?([^'\n]*?)'?[.\n]")
_PUNCTUATION = "{}[],:"


def parse_failure(override: str, several: bool = False) -> str | None:
    """Return a message with the correct form of an override that Hydra cannot parse; None if Hydra can parse it.

    >>> print(parse_failure("suite.base=epoch=1.safetensors"))
    Hydra cannot read suite.base=epoch=1.safetensors. Quote the value: 'suite.base="epoch=1.safetensors"'.

    Args:
        override: the override as typed.
        several: whether a value may be a list with one job per value.
    """
    if _parses(override, several):
        return None
    suggestion = quoted(override)
    if _parses(override, several=True):
        key, _, value = override.partition("=")
        return (
            f"{short(override, 200)} is several values, for one job each: add -m for that, write a list as "
            f"'{short(key)}=[{short(value, 100)}]', or quote a text with commas: {suggestion}."
        )
    start = f"Hydra cannot read {short(override, 200)}."
    return (
        f"{start} Quote the value: {suggestion}." if suggestion else f"{start} Check its brackets and quotes."
    )


def quoted(override: str) -> str | None:
    """Quote an override for the shell so that Hydra reads the value as plain text; return None if no quoting works."""
    key, sign, value = override.partition("=")
    if not sign:
        return None
    candidates = [f"{key}={_quote_parts(value)}"] if value[:1] in "{[" else []
    candidates.append(f"{key}={_quote(value)}")
    for candidate in candidates:
        if _parses(candidate):
            return f"'{candidate}'" if "'" not in candidate else shlex.quote(candidate)
    return None


def _parses(override: str, several: bool = False) -> bool:
    try:
        found = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return several or not found.is_sweep_override()


def _quote(text: str) -> str:
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    # A backslash before the closing quote would escape it.
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


def _quote_parts(value: str) -> str:
    """Quote the values of a list or of names and values, up to the commas and brackets around them."""

    def replaced(found: re.Match[str]) -> str:
        text = found[2].strip()
        plain = not text or re.fullmatch(r"[\w./+-]+|\"[^\"]*\"|'[^']*'", text, re.ASCII)
        return f"{found[1]}{text if plain else _quote(text)}"

    return re.sub(r"([\[{,:]\s*)([^\[\]{},:]+)", replaced, value)


def sentence(error: Exception, known: Iterable[str] = ()) -> str:
    """Format an error of Hydra or OmegaConf as one line.

    Args:
        error: what was raised.
        known: the settings that there are.
    """
    text = str(error).split("\nConfig search path")[0].rstrip()
    if "hydra/sweeper/optuna" in text:
        return "Searching needs the Optuna sweeper: uv pip install 'mergeability[sweep]'."
    options = _OPTIONS.search(text)
    missing = _NOT_FOUND.search(text)
    if options and missing:
        names = options[2].split()
        name = missing[1].rpartition("/")[2]
        return (
            f"There is no {options[1]}={short(name)}.{did_you_mean(name, names)} Choices: {', '.join(names)}."
        )
    key = re.search(r"Could not (?:override|delete|append)[^'\n]*'([^'\n]+)'", text)
    if key:
        path = key[1].partition("=")[0].lstrip("+~")
        # Of names and values, {x: 1}, the name that is not there.
        inner = re.search(r"full_key: (\S+)", str(error.__cause__))
        path = inner[1] if inner and inner[1].startswith(f"{path}.") else path
        return f"There is no setting {short(path)}.{did_you_mean(path, known)} To see all: --cfg job."
    return " ".join(printable(text).split())


# Flags of Hydra that take a word after them.
_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Move flags before settings, because argparse rejects settings on both sides of a flag.

    >>> flags_first(["suite=mini", "-m", "merge=ties,ta", "--cfg", "job"])
    ['-m', '--cfg', 'job', 'suite=mini', 'merge=ties,ta']
    """
    flags, settings, left = [], [], list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            settings.append(word)
        elif word in ("--info", "-i"):
            flags.append(f"--info={left.pop(0) if left and left[0] in _INFO else 'all'}")
        else:
            flags.append(word)
            if word in (*_WITH_VALUE, "--experimental-rerun") and left:
                flags.append(left.pop(0))
    return [*flags, *settings]


def check_overrides(arguments: Sequence[str]) -> None:
    """Check that Hydra can parse every setting.

    Raises:
        UserError: a setting cannot be parsed; the message contains the quoted form that works.
    """
    flags = flags_first(arguments)
    words = flags[len(flags) - sum(not word.startswith("-") for word in flags) :]
    # Experiments may be sweeps without the flag: their files set hydra.mode.
    several = bool({"-m", "--multirun"} & set(arguments)) or any(
        word.startswith(("experiment=", "hydra.mode=")) for word in words
    )
    for word in words:
        if word.startswith("-") or "=" not in word:
            continue
        failure = parse_failure(word, several)
        if failure is not None:
            raise UserError(failure)
        key = word.partition("=")[0].lstrip("+")
        value = OverridesParser.create().parse_override(word).value()
        if key and key != "experiment" and is_group(key) and not _chooses(value):
            names = sorted({*files(key), *derived_sets().get(key, {})})
            raise UserError(f"Expected {key} to be one of {', '.join(names)}, got {word.partition('=')[2]}.")


def _chooses(value: Any) -> bool:
    """Return whether a value can be the name of members of a group."""
    return isinstance(value, str | Sweep) or (
        isinstance(value, list) and all(isinstance(one, str) for one in value)
    )


def known_settings(error: Exception) -> list[str]:
    """List the settings of the current command if an unknown name may have caused an error."""
    if not isinstance(error, ConfigCompositionException) or "Could not" not in str(error):
        return []
    script = "train" if Path(sys.argv[0]).stem.endswith("train") else "analyze"
    choices = [word for word in sys.argv[1:] if _is_choice(word)]
    with initialize_config_dir(str(folder("")), version_base="1.3"):
        try:
            cfg = compose(script, choices)
        except (HydraException, OmegaConfBaseException):
            cfg = compose(script)
    return [*groups(), *_paths(cfg, "")]


def _is_choice(word: str) -> bool:
    """Return whether a setting chooses a member of a group."""
    key, sign, _ = word.partition("=")
    return bool(sign) and is_group(key)


def _paths(node: DictConfig, path: str) -> Iterator[str]:
    for name in node:
        inner, full = node._get_node(name), f"{path}.{name}" if path else str(name)
        if isinstance(inner, DictConfig) and not (inner._is_none() or inner._is_interpolation()):
            yield from _paths(inner, full)
        else:
            yield full
