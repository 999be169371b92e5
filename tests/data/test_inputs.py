"""Inputs of any kind: rows of several tensors move together, and keys of images are those of version 0.1.0."""

import pytest
import torch

from mergeability.data.inputs import Inputs, Texts, Tokens
from mergeability.errors import UserError


@pytest.fixture
def samples():
    return Inputs({"tokens": torch.arange(15).reshape(5, 3), "mask": torch.arange(5.0)}, torch.arange(5))


def test_rows_are_kept_together(samples):
    assert len(samples) == 5
    chosen = samples[torch.tensor([3, 0])]
    assert list(chosen.tensors) == ["tokens", "mask"]
    assert chosen.tensors["tokens"].tolist() == [[9, 10, 11], [0, 1, 2]]
    assert (chosen.tensors["mask"].tolist(), chosen.labels.tolist()) == ([3.0, 0.0], [3, 0])
    assert samples[torch.arange(5) > 3].labels.tolist() == [4]
    assert samples[:0].labels.shape == (0,)
    assert [one.labels.tolist() for one in samples.batches(2)] == [[0, 1], [2, 3], [4]]
    moved = samples.to("meta")
    assert {one.device.type for one in (*moved.tensors.values(), moved.labels)} == {"meta"}


def test_tasks_are_put_one_after_the_other(samples):
    joined = Inputs.joined([samples[3:], samples[:1]])
    assert joined.tensors["tokens"][:, 0].tolist() == [9, 12, 0]
    assert joined.labels is None
    assert samples.without_labels()[:2].labels is None


def test_the_fingerprint_of_images_is_that_of_version_0_1_0():
    images, labels = torch.arange(24.0).reshape(2, 3, 2, 2), torch.tensor([1, 0])
    one = Inputs({"images": images}, labels)
    # As printed by version 0.1.0 for these images.
    assert one.fingerprint == "4b654102ff95edaeadebe7db3ad4ef0e97759b119f28dfa6c06b7273be8479e2"
    assert (
        one.without_labels().fingerprint == "cbeb1d98afda7829d8ac8cd7fe4e805ca0db7aec57dd20f99f35b97d382399c5"
    )


def test_the_fingerprint_sees_everything(samples):
    others = [
        samples.without_labels(),
        Inputs(samples.tensors, samples.labels + 1),
        Inputs({**samples.tensors, "mask": -samples.tensors["mask"]}, samples.labels),
        Inputs({"words": samples.tensors["tokens"], "mask": samples.tensors["mask"]}, samples.labels),
        samples[:4],
    ]
    assert len({samples.fingerprint, *(one.fingerprint for one in others)}) == 1 + len(others)


def test_what_is_no_set_of_samples_is_refused():
    with pytest.raises(UserError, match="at least one tensor of inputs"):
        Inputs({})
    with pytest.raises(UserError, match="other than 'labels', got labels"):
        Inputs({"labels": torch.zeros(2)})
    with pytest.raises(UserError, match="tokens has 3, labels has 2"):
        Inputs({"tokens": torch.zeros(3)}, torch.zeros(2))


LABELS = torch.arange(2)


# Called without the checks of annotations, as users call it.
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Texts(["a", " ", ""], torch.arange(3)), "not empty, got ' ' and 1 more"),
        (
            lambda: Texts(["a", "b"], torch.arange(3)),
            r"one int64 label for each of 2 texts, got torch\.int64 of shape \(3,\)",
        ),
        (lambda: Texts(["a", "b"], LABELS.float()), r"for each of 2 texts, got torch\.float32"),
        (
            lambda: Tokens(torch.zeros(2, 3), LABELS),
            r"tokens as int64 of shape \(N, length\), got torch\.float32 of shape \(2, 3\)",
        ),
        (
            lambda: Tokens(torch.arange(2), LABELS),
            r"int64 of shape \(N, length\), got torch\.int64 of shape \(2,\)",
        ),
        (
            lambda: Tokens(torch.ones(3, 2, dtype=torch.int64), LABELS),
            r"label for each of 3 texts, got .* of shape \(2,\)",
        ),
    ],
)
def test_what_are_no_labelled_texts_or_tokens_is_refused(made, message):
    with pytest.raises(UserError, match=message):
        made()


def test_texts_and_tokens_have_as_many_samples_as_labels():
    assert len(Texts(["a", "b"], LABELS)) == len(Tokens(torch.ones(2, 3, dtype=torch.int64), LABELS)) == 2
