"""Return the names of checkpoint folders, and the commands that train their models."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from mergeability.commands.folders import RunFolders


def number_name(value: float | int | str) -> str:
    """Format a number as part of a name, such that 1, 1.0 and 1e0 have the same name."""
    return repr(float(value)).removesuffix(".0")


def penalty_folder(name: str, strength: float | int, variant: str | None = None) -> str:
    """Return the folder name of a penalty: `<penalty>-<λ>`, or `none-0` if λ = 0; a variant adds `+<variant>`."""
    folder = f"{name}-{number_name(strength)}" if float(strength) != 0 else "none-0"
    return f"{folder}+{variant}" if variant else folder


def train_command(
    model: str, penalty: str, strength: float | int, seed: int, variant: str | None, root: str
) -> str:
    """Return the command that trains the models of an analysis, without its `task=` argument."""
    words = [f"model={model}"]
    if float(strength) != 0:
        words += [f"reg={penalty}", f"reg.lambda={number_name(strength)}"]
    words += [f"seed={seed}"] if seed else []
    words += [f"variant={variant}"] if variant else []
    words += [f"paths.root={root}"] if root != "outputs" else []
    return f"python train.py -m {' '.join(words)}"


def tracking_group() -> str | None:
    """Return the group name of the current sweep or run: the last two parts of its folder; None outside a job."""
    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    given = RunFolders.claim.shown
    folder = Path(config.sweep.dir) if config.mode == RunMode.MULTIRUN else given or Path(config.run.dir)
    return group_name(folder)


def group_name(folder: Path) -> str:
    """Return the group name of the runs in a folder: the last two parts of the folder's path.

    >>> group_name(Path("/results/outputs/regularisation/mini-clip_mini"))
    'regularisation/mini-clip_mini'
    """
    return "/".join(folder.absolute().parts[-2:])


OmegaConf.register_new_resolver("tracking_group", tracking_group, replace=True)
OmegaConf.register_new_resolver("penalty_folder", penalty_folder, replace=True)
OmegaConf.register_new_resolver("train_command", train_command, replace=True)
