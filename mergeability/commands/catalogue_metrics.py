"""Describe metrics in the catalogue from their declared traits and options."""

import math
from typing import Any

from mergeability.members import declared, members
from mergeability.metrics.traits import Traits

# What the view of a metric is, and what its evidence costs.
VIEWS = {
    "task_vector": "task vectors: fine-tuned weights minus base weights",
    "activation": "mean activations of a layer over the calibration images of all tasks",
    "encoder_gradient": "gradients of the loss with respect to the encoder's parameters",
    "input_gradient": "gradients of the loss with respect to the input images",
}
_COSTS = {
    "geometry": "weights only; one pass over the task vectors for all pairs together",
    "effective rank": "weights only; one pass over the task vectors for all pairs together",
    "subspace": "weights only; leading singular vectors of every matrix, computed once per model",
    "sign": "weights only; one pass over the task vectors to find the largest entries, and one to compare signs",
    "activation": "calibration images; one forward pass per model over the images of all tasks",
    "gradient": "calibration images with labels; one forward and backward pass per model over its task's images",
    "functional": "unlabelled images and zero-shot heads; one forward pass per model and task",
}


def distinction(name: str) -> str:
    """Describe the option that distinguishes a metric from other metrics with the same function."""
    options = members("metric")[name]
    alike = [one for one in members("metric").values() if one["_target_"] == options["_target_"]]
    if len(alike) == 1:
        return ""
    words = {
        "task_vector": "task vectors",
        "activation": "mean activations",
        "encoder_gradient": "gradients of the encoder",
        "input_gradient": "gradients of the input",
        "top": "of the largest singular values",
        "bottom": "of the smallest singular values",
    }
    found = [words[value] for value in options.values() if isinstance(value, str) and value in words]
    return f" ({', '.join(found)})" if found else ""


def metric_traits(name: str) -> Traits:
    """Return the declared traits of a metric without importing it.

    Examples:
        >>> from mergeability.commands.catalogue_metrics import metric_traits
        >>> metric_traits("activation_cosine_similarity").needs_data
        True
    """
    options = members("metric")[name]
    found: dict[str, Any] = {"category": "other", **declared(options["_target_"])}
    return Traits(**found).with_options(options)


def metric_cost(traits: Traits) -> str:
    """Describe the data that a metric requires."""
    cost = _COSTS.get(traits.category) or ("calibration images" if traits.needs_data else "weights only")
    if traits.per_pair:
        cost += "; two more passes per pair, of each model over the images of the other task"
    return cost


def metric_range(traits: Traits) -> str:
    """Format the declared range of a metric, without a unit."""
    low = "(−∞" if math.isinf(traits.low) else f"[{traits.low:g}".replace("-", "−")
    high = "∞)" if math.isinf(traits.high) else f"{traits.high:g}]"
    equal = "" if traits.equal is None else f"; {traits.equal:g} for two copies of one model"
    return f"{low}, {high}, without a unit{equal}"
