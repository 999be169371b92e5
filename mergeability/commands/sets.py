"""Define values such as `merge=all`, which select several metrics, merge methods or predictors at once.

Hydra does not support patterns in defaults lists, so these sets are derived here from the files of `conf`. Sets that
are fixed on purpose (`paper`, `minimal`, `none`) are files. The code that the files name is not imported, so that
`--help` stays fast.
"""

from typing import Any

from hydra.core.config_store import ConfigStore

from mergeability.members import data_free, declared, members
from mergeability.metrics.traits import Traits


def derived_sets() -> dict[str, dict[str, list[str]]]:
    """Return, for each group and set, the names that the set selects, in the order in which tables show them."""
    metrics = {name: _traits(options) for name, options in members("metric").items()}
    return {
        # Every method, and those that need neither images nor heads.
        "merge": {"all": list(members("merge")), "data_free": list(data_free())},
        "metric": {
            # Every metric except those that need passes over the data for each pair; metric=[all,shared] includes them.
            "all": [name for name, one in metrics.items() if not one.per_pair],
            # The metrics of weight space, which need no data, except those that are only measured on request.
            "weights": [name for name, one in metrics.items() if not (one.needs_data or one.on_request)],
            # Gradients of both models on the same samples, the union of both tasks': two passes per pair.
            "shared": [name for name, one in metrics.items() if one.per_pair],
            # Metrics of predictions on unlabelled images of the tasks.
            "functional": [name for name, one in metrics.items() if one.category == "functional"],
        },
        # The two baselines are listed first, because every other predictor is compared with them.
        "predictor": {"all": list(members("predictor"))},
    }


def register_sets() -> None:
    """Register the sets of `derived_sets` with Hydra, as if files in `conf` defined these sets."""
    store = ConfigStore.instance()
    for group, sets in derived_sets().items():
        for name, names in sets.items():
            store.store(name, {"defaults": names}, group=group, provider="mergeability")


def _traits(options: dict[str, Any]) -> Traits:
    found: dict[str, Any] = {"category": "other", **declared(options["_target_"])}
    return Traits(**found).with_options(options)


register_sets()
