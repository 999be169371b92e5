"""Merge in one pass over the parameters, given a rule for one parameter."""

from collections.abc import Callable, Collection

from jaxtyping import Float
from torch import Tensor

from mergeability.task_vectors.vectors import TaskVectors

# From a parameter's name and its stack of T deltas to that parameter of the merged task vector.
Rule = Callable[[str, Tensor], Tensor]


def stream(
    task_vectors: TaskVectors, rule: Rule, *, only: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Merge one parameter at a time: only one layer of all models is in memory in addition to the result.

    Running statistics of batch norms are averaged for every rule. Tied weights are merged once.

    Args:
        task_vectors: the models.
        rule: merges one parameter.
        only: the parameters to merge, including tied ones; all when None.

    Returns:
        M in float32, by parameter name.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import stream
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5])
        >>> stream(models, lambda name, stack: stack.amax(0))
        {'weight': tensor([4., 1., 5.])}
    """
    tied = task_vectors.tied
    wanted = [name for name in task_vectors.names if only is None or tied.get(name, name) in only]
    merged = {name: rule(name, task_vectors.stack(name)) for name in wanted if name not in tied}
    merged = {name: merged[name] if name in merged else merged[tied[name]].clone() for name in wanted}
    if only is None:
        for name in task_vectors.buffers:
            merged[name] = mean(name, task_vectors.stack(name))
    return merged


def mean(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Average the deltas: the rule of `Average`, and of parameters that a method does not treat specially.

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
