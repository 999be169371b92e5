"""Run the jobs of a sweep in several local processes, in a Slurm queue, or on a Ray cluster.

`conf/hydra/launcher/` names Hydra's plugins for joblib, submitit and Ray. Classes of this package replace them,
because a plugin aborts the whole sweep as soon as one process is killed.
"""

from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from mergeability.commands.launchers.clusters import Ray, SubmititSlurm
from mergeability.commands.launchers.local import Joblib, SubmititLocal
from mergeability.errors import UserError

# Target in the configuration → the class that takes its place, and the extra and modules that it needs.
_PLACES: dict[str, tuple[type[Launcher], str, tuple[str, ...]]] = {
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": (Joblib, "joblib", ("joblib",)),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": (
        SubmititLocal,
        "slurm",
        ("submitit",),
    ),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": (
        SubmititSlurm,
        "slurm",
        ("submitit",),
    ),
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": (Ray, "ray", ("ray",)),
}


def take_over(launcher: DictConfig) -> None:
    """Replace the launcher of a Hydra plugin by this package's own class.

    Raises:
        UserError: the plugin or what it needs is not installed.
    """
    target = str(launcher.get("_target_"))
    if target not in _PLACES:
        return
    own, extra, modules = _PLACES[target]
    if not all(map(_installed, (target.rpartition(".")[0], *modules))):
        raise UserError(
            f"This launcher requires the extra {extra}. Install it with uv pip install"
            f" 'mergeability[{extra}]', or run the jobs one after another with hydra/launcher=basic."
        )
    Plugins.instance().class_name_to_class[target] = own


def forget_schemas() -> None:
    """Unregister the launcher configurations of Hydra plugins, so that the files in `conf/hydra/launcher` are used.

    Plugins register schemas under the same names, and Hydra would check the files against these.
    """
    Plugins.instance()
    known = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in ("joblib", "submitit_local", "submitit_slurm", "ray"):
        known.pop(f"{name}.yaml", None)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
