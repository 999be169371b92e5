"""Names of folders and commands: a checkpoint's folder, the command that trains it."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from mergeability.commands.folders import RunFolders


def number_name(value: float | int | str) -> str:
    """Name a number so that 1, 1.0 and 1e0 share a name and different numbers never do."""
    return repr(float(value)).removesuffix(".0")


def penalty_folder(name: str, strength: float | int, variant: str | None = None) -> str:
    """Name a training's folder: `<penalty>-<λ>`, `none-0` whatever the penalty for λ = 0, `+<variant>` after it."""
    folder = f"{name}-{number_name(strength)}" if float(strength) != 0 else "none-0"
    return f"{folder}+{variant}" if variant else folder


def train_command(
    model: str, penalty: str, strength: float | int, seed: int, variant: str | None, root: str
) -> str:
    """Write the command that trains models into the folder an analysis looks in, up to its `task=`."""
    words = [f"model={model}"]
    if float(strength) != 0:
        words += [f"reg={penalty}", f"reg.lambda={number_name(strength)}"]
    words += [f"seed={seed}"] if seed else []
    words += [f"variant={variant}"] if variant else []
    words += [f"paths.root={root}"] if root != "outputs" else []
    return f"python train.py -m {' '.join(words)}"


def tracking_group() -> str | None:
    """Name the sweep, or the run, that a job belongs to by the last two parts of its folder; None outside a job."""
    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    given = RunFolders.claim.shown
    folder = Path(config.sweep.dir) if config.mode == RunMode.MULTIRUN else given or Path(config.run.dir)
    return group_name(folder)


def group_name(folder: Path) -> str:
    """Name the group of the runs of a folder: by its last two parts.

    >>> group_name(Path("/results/outputs/regularisation/mini-clip_mini"))
    'regularisation/mini-clip_mini'
    """
    return "/".join(folder.absolute().parts[-2:])


OmegaConf.register_new_resolver("tracking_group", tracking_group, replace=True)
OmegaConf.register_new_resolver("penalty_folder", penalty_folder, replace=True)
OmegaConf.register_new_resolver("train_command", train_command, replace=True)
