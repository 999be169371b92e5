"""Search for configuration files in `--config-dir`, then in `./conf`, then in the package.

By default, Hydra searches `--config-dir` last. It contains users' tasks, metrics or methods as YAML files, whose
`_target_` may be in a module in the working folder.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from mergeability import members
from mergeability.commands.sets import register_sets
from mergeability.errors import UserError

_OPTIONS = ("--config-dir", "-cd")


class OwnFolders(SearchPathPlugin):
    """Add users' configuration folders to Hydra's search path, before the package's folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend the folders to the search path, in their order."""
        for place in reversed(members.own_folders()):
            search_path.prepend("own", f"file://{place}")


def use_own_folders(arguments: Sequence[str]) -> None:
    """Make Hydra search `--config-dir` and `./conf` before the package's configuration.

    Raises:
        UserError: `--config-dir` is no folder.
    """
    forget_own_folders()
    package = members.folder("").resolve()
    for place in (*_given(arguments), Path("conf")):
        if place.is_dir() and place.resolve() != package:
            members.add_folder(place.resolve())
    if members.own_folders():
        register_sets()
        Plugins.instance().register(OwnFolders)
        if str(Path.cwd()) not in sys.path:
            # Modules named as `_target_` in ./conf are importable from the working folder, as with `python train.py`.
            sys.path.append(str(Path.cwd()))


def forget_own_folders() -> None:
    """Reset the search path to the package's own configuration."""
    if members.own_folders():
        members.forget_folders()
        register_sets()


def _given(arguments: Sequence[str]) -> Iterator[Path]:
    for number, word in enumerate(arguments):
        name, sign, value = word.partition("=")
        if name not in _OPTIONS:
            continue
        value = value if sign else next(iter(arguments[number + 1 :]), "")
        place = Path(value).expanduser()
        if not value or not place.is_dir():
            raise UserError(
                f"Expected {name} to be a folder with configuration files, got {value or 'nothing'}."
            )
        yield place
