"""One pass over the parameters: what makes a merge method of a rule for one parameter."""

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

    Running statistics of batch norms are averaged, whatever the rule. Tied weights are merged once.

    Args:
        task_vectors: the models.
        rule: merges one parameter.
        only: the parameters to merge, with what is tied to them; all of them when None.
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
    """Average the deltas: the rule of plain averaging, and of the parameters that a method does not treat."""
    return stack.mean(0)
