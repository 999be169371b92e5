"""Describe unusual models and pairs in sentences."""

from collections.abc import Iterator

import pandas as pd

from mergeability.task_vectors.vectors import TaskVectors

COSINE = "task_vector_cosine_similarity"
# Cosines of fine-tuned copies of one model are rarely above this value or below its negative.
_ALIGNED, _OPPOSED = 0.3, -0.1
# Larger ratios of lengths let one model dominate averages.
_UNEQUAL = 2.0
# Below this share of the base's norm, a model has hardly changed.
_TINY = 1e-4


def standing_out(vectors: TaskVectors, pairs: pd.DataFrame) -> list[str]:
    """Return sentences about unusual models and pairs.

    Args:
        vectors: the models.
        pairs: `task_a`, `task_b` and, where it was measured, the cosine of the task vectors.

    Returns:
        Sentences, the most important first; at least one.

    Examples:
        >>> from mergeability import measure
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.verbs.standing_out import standing_out
        >>> models = tiny_task_vectors(cars=[3, 0], svhn=[0, 1])
        >>> for sentence in standing_out(models, measure(models).reset_index()):
        ...     print(sentence)
        Update of cars: 3.3 % of the base's length; svhn: 1.1 %.
        The update of cars is 3.0 times as long as that of svhn: in an average, cars dominates.
        The updates of cars and svhn are nearly orthogonal: cosine 0.00.
    """
    return [*_of_models(vectors), *_of_pairs(pairs)]


def _of_models(vectors: TaskVectors) -> Iterator[str]:
    norms = vectors.relative_norms()
    longest, shortest = max(norms, key=lambda one: norms[one]), min(norms, key=lambda one: norms[one])
    shown = [f"{name}: {100 * norm:.2g} %" for name, norm in norms.items()]
    if len(shown) <= 6:
        yield f"Update of {shown[0]} of the base's length; {'; '.join(shown[1:])}."
    else:
        yield (
            f"Updates are {100 * norms[shortest]:.2g} % ({shortest}) to {100 * norms[longest]:.2g} % ({longest}) of "
            "the base's length."
        )
    equal = [name for name, norm in norms.items() if norm == 0]
    if equal:
        yield f"Equal to the base: {', '.join(equal)}. Nothing was fine-tuned there."
    still = [name for name, norm in norms.items() if 0 < norm < _TINY]
    if still:
        yield f"Hardly changed from the base: {', '.join(still)}."
    if norms[shortest] > 0 and norms[longest] > _UNEQUAL * norms[shortest]:
        yield (
            f"The update of {longest} is {norms[longest] / norms[shortest]:.1f} times as long as that of {shortest}: "
            f"in an average, {longest} dominates."
        )


def _of_pairs(pairs: pd.DataFrame) -> Iterator[str]:
    if COSINE not in pairs or pairs[COSINE].isna().all():
        return
    ordered = pairs.dropna(subset=[COSINE]).sort_values(COSINE)
    most, least = ordered.iloc[-1], ordered.iloc[0]
    if most[COSINE] > 1 - 1e-6:
        yield f"{most['task_a']} and {most['task_b']} have the same direction: perhaps one model twice."
    elif most[COSINE] > _ALIGNED:
        yield f"The updates of {most['task_a']} and {most['task_b']} point the same way: cosine {most[COSINE]:.2f}."
    if least[COSINE] < _OPPOSED:
        yield f"The updates of {least['task_a']} and {least['task_b']} oppose each other: cosine {least[COSINE]:.2f}."
    if len(ordered) == 1 and _OPPOSED <= least[COSINE] <= _ALIGNED:
        yield (
            f"The updates of {least['task_a']} and {least['task_b']} are nearly orthogonal: cosine "
            f"{least[COSINE]:.2f}."
        )
    elif len(ordered) > 1:
        yield f"Cosines of the {len(ordered)} pairs: {least[COSINE]:.2f} to {most[COSINE]:.2f}."
