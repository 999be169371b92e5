"""List the choices of a command for `--help`."""

import re
import shutil
import textwrap
from collections.abc import Iterator

import yaml
from omegaconf import OmegaConf

from mergeability.commands.sets import derived_sets
from mergeability.members import files

_INDENT = "    "


def group_choices(script: str) -> dict[str, list[str]]:
    """Return the groups in the defaults list of a command, and the members of each group.

    Args:
        script: `train` or `analyze`.
    """
    defaults = yaml.safe_load(files("")[script].read_text(encoding="utf-8"))["defaults"]
    found = {}
    for group in _groups(defaults):
        names = sorted({*files(group), *derived_sets().get(group, {})})
        found[group] = names if group != "experiment" else [one for one in names if _is_for(script, one)]
    return found


def _groups(defaults: list[str | dict[str, object]]) -> Iterator[str]:
    for one in defaults:
        # Hydra's own groups are set there, too: `override hydra/job_logging`.
        if isinstance(one, dict) and not next(iter(one)).startswith("override "):
            yield next(iter(one))
    yield "hydra/launcher"


def _is_for(script: str, experiment: str) -> bool:
    """Return whether an experiment belongs to a command: its comment shows how it is started."""
    text = files("experiment")[experiment].read_text(encoding="utf-8")
    started = re.findall(rf"\b(train|analyze)(?:\.py)? (?:\S+ )*experiment={experiment}\b", text)
    return script in started or not started


def choices_text(script: str) -> str:
    """Format the choices of a command for the terminal, with one paragraph per group."""
    width = min(shutil.get_terminal_size().columns, 120)
    return "\n".join(
        textwrap.fill(
            f"{group}: {', '.join(names)}",
            width,
            initial_indent="  ",
            subsequent_indent=_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for group, names in group_choices(script).items()
    )


OmegaConf.register_new_resolver("choices", choices_text, replace=True)
