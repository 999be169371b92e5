"""Compute metrics from predictions of models on a few unlabelled images, without merging.

Let v(m, t) compare the predictions of model m on the images of task t, with t's frozen head, with those of t's own
fine-tuned model. Each metric of a pair is the mean of v over both tasks.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float64

from mergeability.errors import UserError
from mergeability.metrics.traits import metric
from mergeability.profiles.functional import FunctionalEvidence, FunctionalValues, SetAnswers
from mergeability.profiles.profiles import Profiles


@metric(category="functional", low=0, high=1, needs_data=True)
def base_agreement(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the share, in [0, 1], of images on which the base model predicts the same class as the fine-tuned model.

    It measures how well the base model already solves both tasks.

    Formula: ½ (v(base, a) + v(base, b)), where v is the share of images with the same highest logit.

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no unlabelled inputs or heads.

    Paper: arXiv 2601.06672, which identifies it as the main cause of mergeability.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.functional import base_agreement
        >>> base_agreement(tiny_profiles("cars", "svhn")).round(2)
        array([[0.88, 0.75],
               [0.75, 0.62]])
    """
    return _of_both(_values(profiles).base["agreement"])


@metric(category="functional", low=0, high=1, needs_data=True)
def base_overlap(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the overlap, in [0, 1], between the class probabilities of the base model and of the fine-tuned model.

    Formula: ½ (v(base, a) + v(base, b)), where v is the mean over images of Σ_y min(p_y, q_y).

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no unlabelled inputs or heads.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.functional import base_overlap
        >>> base_overlap(tiny_profiles("cars", "svhn")).round(2)
        array([[0.92, 0.91],
               [0.91, 0.9 ]])
    """
    return _of_both(_values(profiles).base["overlap"])


@metric(category="functional", low=0, high=1, equal=1, needs_data=True)
def ensemble_overlap(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the overlap between the class probabilities from averaged features and those from each task's own model.

    The averaged features are z = (z_a + z_b)/‖z_a + z_b‖, where z_a and z_b are the L2-normalised features of the two
    models: they imitate a merge without merging. NaN where ‖z_a + z_b‖ < 1e-6.

    Formula: ½ (v(z, a) + v(z, b)), where v is the mean over images of Σ_y min(p_y, q_y).

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no unlabelled inputs or heads.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.functional import ensemble_overlap
        >>> ensemble_overlap(tiny_profiles("cars", "svhn")).round(2)
        array([[1.  , 0.95],
               [0.95, 1.  ]])
    """
    return _mean_of_sides(_values(profiles).ensemble["overlap"])


@metric(category="functional", low=0, high=1, needs_data=True)
def ensemble_confidence(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the probability that the averaged features give to the class predicted by each task's own model.

    As `ensemble_overlap`, but with the mean over images of P(ŷ), where ŷ is the class predicted by the task's own
    model.

    Formula: ½ (v(z, a) + v(z, b)), where v is the mean over images of P(ŷ).

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no unlabelled inputs or heads.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.functional import ensemble_confidence
        >>> ensemble_confidence(tiny_profiles("cars", "svhn")).round(2)
        array([[0.57, 0.56],
               [0.56, 0.61]])
    """
    return _mean_of_sides(_values(profiles).ensemble["confidence"])


@metric(category="functional", low=0, high=1, equal=1, needs_data=True)
def partner_agreement(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the share, in [0, 1], of a task's images on which the two models of the pair predict the same class.

    For each of the two tasks, both models classify the task's images with the task's head; the metric is the mean of
    the two shares.

    Formula: ½ (v(b, a) + v(a, b)), where v is the share of images with the same highest logit.

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no unlabelled inputs or heads.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.functional import partner_agreement
        >>> partner_agreement(tiny_profiles("cars", "svhn")).round(2)
        array([[1.  , 0.69],
               [0.69, 1.  ]])
    """
    return _mean_of_sides(_values(profiles).partner["agreement"])


@metric(category="functional", low=0, needs_data=True)
def partner_retention(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the other model's agreement with a task's own model, divided by the base model's agreement, in [0, ∞).

    NaN if the base agrees with a task's own model on none of its images.

    Formula: ½ (v(b, a) / v(base, a) + v(a, b) / v(base, b)), where v is the agreement.

    Range: [0, ∞), without a unit.

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no unlabelled inputs or heads.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.functional import partner_retention
        >>> partner_retention(tiny_profiles("cars", "svhn")).round(2)
        array([[1.14, 0.96],
               [0.96, 1.6 ]])
    """
    return _mean_of_sides(_retention(_values(profiles)))


def functional_names(metrics: Iterable[str]) -> list[str]:
    """Return those of the given metric names that belong to functional metrics."""
    return [name for name in metrics if name in _KNOWN]


def set_values(profiles: Profiles, names: Sequence[str], chosen: Sequence[str]) -> dict[str, float]:
    """Compute functional metrics for sets of two or more models.

    `base_*` are means over the set's tasks; `ensemble_*` take the mean of all the set's features, and then the mean
    over its tasks; `partner_*` are means over ordered pairs.

    Args:
        profiles: the models.
        names: functional metrics.
        chosen: names of the set's models.

    Raises:
        UserError: a name is none of the functional metrics.
    """
    unknown = [name for name in names if name not in _KNOWN]
    if unknown:
        raise UserError(
            f"Expected functional metrics from the list {', '.join(_KNOWN)}; got {', '.join(unknown)}."
        )
    values, places = _values(profiles), [profiles.tasks.index(task) for task in chosen]
    found = {}
    for name in names:
        kind, _, measure = name.partition("_")
        if kind == "base":
            found[name] = float(values.base[measure][places].mean())
        elif kind == "ensemble":
            found[name] = profiles.evidence(SetAnswers())(chosen, measure)
        else:
            matrix = _OF_PARTNERS[name](values)[np.ix_(places, places)]
            found[name] = float(matrix[~np.eye(len(places), dtype=bool)].mean())
    return found


def of_models(profiles: Profiles, metrics: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the functional measures of each model.

    Args:
        profiles: the models.
        metrics: names of the measured metrics; the result is empty if none of them is functional.

    Returns:
        `base_agreement`: share of a task's unlabelled images that the base classifies as the fine-tuned model does,
        in [0, 1]; `unlabelled_images`: their number.
    """
    if not functional_names(metrics):
        return {}
    values = _values(profiles)
    return {"base_agreement": values.base["agreement"], "unlabelled_images": values.images}


def _values(profiles: Profiles) -> FunctionalValues:
    values = profiles.evidence(FunctionalEvidence())
    profiles.remarks += [remark for remark in values.remarks if remark not in profiles.remarks]
    return values


def _retention(values: FunctionalValues) -> Float64[np.ndarray, "T T"]:
    base = values.base["agreement"]
    kept = np.full_like(values.partner["agreement"], np.nan)
    return np.divide(values.partner["agreement"], base[None, :], out=kept, where=base[None, :] > 0)


def _of_both(values: Float64[np.ndarray, "T"]) -> Float64[np.ndarray, "T T"]:
    return (values[:, None] + values[None, :]) / 2


def _mean_of_sides(values: Float64[np.ndarray, "T T"]) -> Float64[np.ndarray, "T T"]:
    return (values + values.T) / 2


_OF_PARTNERS: dict[str, Callable[[FunctionalValues], np.ndarray]] = {
    "partner_agreement": lambda values: values.partner["agreement"],
    "partner_retention": _retention,
}
_KNOWN = ("base_agreement", "base_overlap", "ensemble_overlap", "ensemble_confidence", *_OF_PARTNERS)
