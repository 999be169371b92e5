import numpy as np
import pytest
import torch

from mergeability.errors import UserError
from mergeability.merging import ConsensusTA, TaskArithmetic


def merged(make_task_vectors, rows, **options):
    """Merge models of one vector each, from a base of a power of two, so that no delta is rounded."""
    deltas = {f"task{number}": {"w": torch.tensor(row)} for number, row in enumerate(rows)}
    base = {"w": torch.full((len(rows[0]),), 8.0)}
    return ConsensusTA(**options)(make_task_vectors(base, deltas))["w"].tolist()


def test_masks_of_two_tasks_by_hand(make_task_vectors):
    # |τ_t| > 0.4·|the other|: both have to be within a factor of 2.5 of each other, whatever their signs.
    rows = [[1.0, 1.0, 3.0, -1.0, 0.0, 2.0], [1.0, 2.0, 1.0, 2.0, 2.0, -2.0]]
    assert merged(make_task_vectors, rows) == [2.0, 3.0, 0.0, 1.0, 0.0, 0.0]
    # One of the two will do: it keeps everything that is not zero in both.
    assert merged(make_task_vectors, rows, agree=1) == [2.0, 3.0, 4.0, 1.0, 2.0, 0.0]
    # 1 > 0.25·3 now, and never 0 > λ·2.
    assert merged(make_task_vectors, rows, threshold=0.25) == [2.0, 3.0, 4.0, 1.0, 0.0, 0.0]


def test_an_entry_on_the_limit_does_not_matter(make_task_vectors):
    assert merged(make_task_vectors, [[1.0, 1.0], [2.0, 1.5]], threshold=0.5) == [0.0, 2.5]
    # With λ = 0 every change matters, and no change does not.
    assert merged(make_task_vectors, [[1.0, 0.0], [2.0, 1.5]], threshold=0) == [3.0, 0.0]


def test_three_tasks_against_the_sum_of_the_others_by_hand(make_task_vectors):
    rows = [[4.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    # First entry: 4 > 0.4·2, but 1 < 0.4·5 twice. Second: 1 > 0.4·2 three times. Third: one task alone.
    assert merged(make_task_vectors, rows) == [0.0, 3.0, 0.0]
    assert merged(make_task_vectors, rows, agree=1) == [6.0, 3.0, 1.0]
    assert merged(make_task_vectors, rows, agree=3) == [0.0, 3.0, 0.0]


@pytest.mark.parametrize("agree", [1, 2, 3])
def test_it_follows_its_definition_on_every_tensor(three_models, agree):
    found = ConsensusTA(agree=agree, threshold=0.6)(three_models)
    kept = 0
    for name, stack in three_models.items():
        taus = stack.double().numpy()
        total = taus.sum(0)
        masks = [np.abs(tau) > 0.6 * np.abs(total - tau) for tau in taus]
        expected = np.where(np.sum(masks, axis=0) >= agree, total, 0)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-7)
        kept += np.count_nonzero(expected)
    assert 0 < kept < sum(stack[0].numel() for stack in three_models.values())


def test_no_threshold_and_one_task_is_task_arithmetic(three_models):
    found, plain = ConsensusTA(agree=1, threshold=0)(three_models), TaskArithmetic()(three_models)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_more_tasks_than_there_are_models_cannot_agree(three_models):
    with pytest.raises(UserError, match=r"`agree` is 4, but there are only 3 tasks.*Set `agree` to at most"):
        ConsensusTA(agree=4)(three_models)
    assert any(value.any() for value in ConsensusTA(agree=3)(three_models).values())


@pytest.mark.parametrize(
    "options", [{"agree": 0}, {"agree": True}, {"threshold": -0.1}, {"threshold": float("nan")}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=f"Expected the option `{next(iter(options))}`"):
        ConsensusTA(**options)
