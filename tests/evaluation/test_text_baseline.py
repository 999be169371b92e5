"""The TF-IDF baseline of text tasks: fitted on train, tuned on validation, tested on test, and stored."""

import math

import numpy as np
import pytest
import torch

from mergeability.data import Texts
from mergeability.evaluation import tfidf_accuracy
from mergeability.store import Store


def texts(*labelled: tuple[str, int]) -> Texts:
    return Texts([text for text, _ in labelled], torch.tensor([label for _, label in labelled]))


TRAIN = texts(("a red apple", 0), ("a red pear", 0), ("a blue sea", 1), ("a blue sky", 1))


def test_words_that_name_the_class_are_found():
    test = texts(("the red sky", 0), ("the blue pear", 1), ("red", 0), ("blue", 0))
    assert tfidf_accuracy(TRAIN, TRAIN, test, Store()) == 0.75


@pytest.mark.parametrize("pair", [("( a )", ") a ("), ("cats chase dogs", "dogs chase cats")])
def test_signs_and_pairs_of_neighbours_count(pair):
    both = texts((pair[0], 0), (pair[1], 1))
    assert tfidf_accuracy(both, both, both, Store()) == 1.0


def test_the_penalty_is_chosen_on_validation():
    """The weakest of the three penalties is best on these validation texts, and the worst on the test texts."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(28)
    words = [f"w{number}" for number in range(12)]

    def drawn(count: int) -> Texts:
        labels = [number % 2 for number in range(count)]
        # The first word agrees with the label in seven of ten texts; the others are noise.
        hints = [label if rng.random() < 0.7 else 1 - label for label in labels]
        return texts(
            *((" ".join([f"hint{hint}", *rng.choice(words, 4)]), label) for hint, label in zip(hints, labels))
        )

    train, validation, test = drawn(60), drawn(60), drawn(60)

    def features(of: Texts) -> np.ndarray:
        """Compute TF-IDF by hand: counts × (1 + log((1 + n) / (1 + df))), rows of length one."""
        grams = [[*text.split(), *zip(text.split(), text.split()[1:])] for text in of.texts]
        counts = np.array([[one.count(gram) for gram in vocabulary] for one in grams], dtype=float)
        weighted = counts * idf
        return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)

    seen = [{*text.split(), *zip(text.split(), text.split()[1:])} for text in train.texts]
    vocabulary = sorted(set().union(*seen), key=str)
    idf = np.array([1 + math.log((1 + 60) / (1 + sum(gram in one for one in seen))) for gram in vocabulary])
    fitted = [LogisticRegression(C=c, max_iter=1000).fit(features(train), train.labels) for c in (0.3, 3, 30)]
    scores = [one.score(features(validation), validation.labels) for one in fitted]
    on_test = [one.score(features(test), test.labels) for one in fitted]
    assert (int(np.argmax(scores)), int(np.argmax(on_test))) == (2, 0)
    expected = on_test[2]
    assert tfidf_accuracy(train, validation, test, Store()) == pytest.approx(expected)


def test_the_accuracy_is_stored_by_the_texts_of_all_three_splits(tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = tfidf_accuracy(TRAIN, TRAIN, texts(("red", 0), ("blue", 0)), store)
    monkeypatch.setattr("mergeability.evaluation.text_baseline._regression", None)
    assert tfidf_accuracy(TRAIN, TRAIN, texts(("red", 0), ("blue", 0)), store) == first == 0.5
    for changed in (
        (texts(("red", 0), ("blue", 1)), TRAIN, texts(("red", 0), ("blue", 0))),
        (TRAIN, texts(("red", 0)), texts(("red", 0), ("blue", 0))),
        (TRAIN, TRAIN, texts(("red", 0), ("blue", 1))),
    ):
        with pytest.raises(TypeError):
            tfidf_accuracy(*changed, store)
