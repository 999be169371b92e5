"""A baseline for text tasks: logistic regression on the frequencies of words, without a language model."""

import hashlib
import json
from typing import Any

from mergeability.data.inputs import Texts
from mergeability.store import Store

# Part of the store key below: increment it when the meaning of stored values changes.
_VERSION = 1
# Inverse strengths of the L2 penalty, among which the validation accuracy decides.
_INVERSE_PENALTIES = (0.3, 3.0, 30.0)
# Words, and signs one by one: brackets and operators matter in code.
_TOKENS = r"\w+|[^\w\s]"


def tfidf_accuracy(train: Texts, validation: Texts, test: Texts, store: Store) -> float:
    """Return the test accuracy, in [0, 1], of multinomial logistic regression on TF-IDF features: a baseline.

    Features are the TF-IDF values of words, signs and pairs of neighbours. Of three L2 penalties, the one with the
    highest validation accuracy is used.

    Args:
        train: texts to fit on.
        validation: texts to choose the penalty on.
        test: texts to test on.
        store: where the accuracy is kept.

    Examples:
        >>> from mergeability.data import TextCorpus
        >>> from mergeability.evaluation import tfidf_accuracy
        >>> from mergeability.store import Store
        >>> corpus = TextCorpus("expressions", train=200, validation=40, test=40)
        >>> accuracy = tfidf_accuracy(*(corpus.load(split) for split in ("train", "validation", "test")), Store())
        >>> 0.125 < accuracy < 1
        True
    """
    parts = {"train": train, "validation": validation, "test": test}
    key: dict[str, Any] = {split: _fingerprint(texts) for split, texts in parts.items()}
    key |= {"inverse_penalties": list(_INVERSE_PENALTIES), "tokens": _TOKENS, "version": _VERSION}

    def compute() -> dict[str, float]:
        fitted = [_regression(train, penalty) for penalty in _INVERSE_PENALTIES]
        best = max(fitted, key=lambda model: model.score(validation.texts, validation.labels.numpy()))
        return {"accuracy": float(best.score(test.texts, test.labels.numpy()))}

    return store.record("tfidf_accuracy", key, compute)["accuracy"]


def _regression(train: Texts, inverse_penalty: float) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(ngram_range=(1, 2), token_pattern=_TOKENS)
    model = make_pipeline(features, LogisticRegression(C=inverse_penalty, max_iter=1000))
    return model.fit(train.texts, train.labels.numpy())


def _fingerprint(texts: Texts) -> str:
    return hashlib.sha256(json.dumps([list(texts.texts), texts.labels.tolist()]).encode()).hexdigest()
