"""Merge in one pass over the parameters, given a rule for one parameter."""

import contextlib
from collections.abc import Callable, Collection

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.task_vectors.vectors import TaskVectors
from mergeability.threads import one_openmp_thread

# From a parameter's name and its stack of T deltas to that parameter of the merged task vector.
Rule = Callable[[str, Tensor], Tensor]


def stream(
    task_vectors: TaskVectors,
    rule: Rule,
    *,
    elementwise: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Merge one parameter at a time: apart from the result, memory holds only one layer of each model.

    Running statistics of batch norms are averaged for every rule. Tied weights are merged once.

    Args:
        task_vectors: the models.
        rule: merges one parameter.
        elementwise: whether each entry of the result depends only on the same entry of the models. Then `rule` is
            called with blocks of the flattened parameter, T × elements, and at most 1 MiB of each model is in memory.
        only: the parameters to merge, including tied ones; all when None.

    Returns:
        M in float32, by parameter name.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import stream
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5])
        >>> stream(models, lambda name, stack: stack.amax(0), elementwise=True)
        {'weight': tensor([4., 1., 5.])}
    """

    def merge(name: str) -> Tensor:
        if elementwise:
            return by_block(task_vectors, name, rule)
        return rule(name, task_vectors.stack(name))

    # Blocks are read by several threads, and are too small for several more.
    with one_openmp_thread() if elementwise else contextlib.nullcontext():
        return by_name(task_vectors, merge, only=only)


def by_name(
    task_vectors: TaskVectors, merge: Callable[[str], Tensor], *, only: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Merge parameter by parameter with a function that reads the models itself, for example one after another.

    Args:
        task_vectors: the models.
        merge: merges the parameter of a name.
        only: the parameters to merge, as for `stream`.

    Returns:
        M in float32, by parameter name.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import by_name
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5])
        >>> by_name(models, lambda name: sum(delta.clamp(0, 3) for delta in models.each(name)))
        {'weight': tensor([5., 1., 3.])}
    """
    tied = task_vectors.tied
    wanted = [name for name in task_vectors.names if only is None or tied.get(name, name) in only]
    merged = {name: merge(name) for name in wanted if name not in tied}
    merged = {name: merged[name] if name in merged else merged[tied[name]].clone() for name in wanted}
    if only is None:
        for name in task_vectors.buffers:
            merged[name] = by_block(task_vectors, name, mean)
    return merged


def by_block(task_vectors: TaskVectors, name: str, rule: Rule) -> Tensor:
    """Merge one parameter by an element-wise rule, in blocks.

    Args:
        task_vectors: the models.
        name: the parameter.
        rule: merges a block of the flattened parameter, T × elements.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import by_block, mean
        >>> by_block(tiny_task_vectors(cars=[[4, 1]], svhn=[[2, -3]]), "weight", mean)
        tensor([[ 3., -1.]])
    """
    merged = torch.empty(task_vectors.shapes[name])
    flat = merged.reshape(-1)
    for part, stack in task_vectors.blocks(name):
        flat[part] = rule(name, stack)
    return merged


def total(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Add the deltas: the rule of `TaskArithmetic`.

    Args:
        _name: name of the parameter, not used.
        stack: deltas of T models, T × the parameter's shape.

    Examples:
        >>> import torch
        >>> from mergeability.merging.stream import total
        >>> total("weight", torch.tensor([[4.0, 1.0], [2.0, -3.0]]))
        tensor([ 6., -2.])
    """
    return stack.sum(0)


def mean(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Average the deltas, as `Average` does, and as other methods do for parameters without special treatment.

    Args:
        _name: name of the parameter, not used.
        stack: deltas of T models, T × the parameter's shape.

    Examples:
        >>> import torch
        >>> from mergeability.merging.stream import mean
        >>> mean("weight", torch.tensor([[4.0, 1.0], [2.0, -3.0]]))
        tensor([ 3., -1.])
    """
    return stack.mean(0)
