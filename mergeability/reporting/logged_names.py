"""Define the names under which values are logged by tracking and read by dashboards."""

from typing import Final

TRAIN: Final = "train"
"""Job type of a training."""

ANALYZE: Final = "analyze"
"""Job type of an analysis."""

SUMMARY: Final = "summary"
"""Job type of the summary of a sweep."""

TEST_ACCURACY: Final = "test_accuracy"
"""Of a training: the fine-tuned model's accuracy on the test images of its task, in [0, 1]."""

BASE_TEST_ACCURACY: Final = "base_test_accuracy"
"""Of a training: the base model's accuracy on the same images, in [0, 1]."""

SECONDS: Final = "seconds"
"""Of a training: how long it took."""

PEAK_MEMORY: Final = "peak_memory_gib"
"""Of a training: its peak memory, in GiB."""

OWN_ACCURACY: Final = "finetuned_accuracy/mean"
"""Of an analysis: the models' accuracies on their own tasks before any merge, the mean over tasks."""

PAIRS: Final = "pairs"
"""Table of an analysis: one row per pair."""

MODELS: Final = "models"
"""Table of an analysis: one row per task."""

HEAT_MAP: Final = "figures/pairs"
"""Figure of an analysis: outcomes of all pairs, task by task."""

PREDICTED: Final = "figures/predicted"
"""Figure of an analysis: predicted outcomes against measured outcomes."""

COEFFICIENTS: Final = "figures/coefficients"
"""Figure of an analysis: coefficients of the predictors."""

FINGERPRINTS: Final = "figures/fingerprints"
"""Figure of an analysis: how far the predictors of every two methods agree."""

FIGURES: Final = (HEAT_MAP, PREDICTED, COEFFICIENTS, FINGERPRINTS)
"""All figures of an analysis."""

REPORT: Final = "report"
"""The report of an analysis, as HTML."""

VERDICT: Final = "verdict"
"""The answer of an analysis, as HTML."""

VERDICT_TEXT: Final = "verdict_text"
"""The answer of an analysis, as text, in its summary."""

TASK: Final = "task.name"
"""Setting: the task of a training."""

PENALTY: Final = "reg.name"
"""Setting: the penalty of fine-tuning."""

STRENGTH: Final = "reg.lambda"
"""Setting: its strength λ."""

SEED: Final = "seed"
"""Setting: the seed of fine-tuning."""

MODEL: Final = "model.name"
"""Setting: the architecture."""

SUITE: Final = "suite.name"
"""Setting of an analysis: the set of tasks."""


def mean_outcome(target: str, method: str) -> str:
    """Return the name under which an outcome's mean over pairs is logged.

    Args:
        target: `norm_acc` or `acc`.
        method: the merge method, with its suffix if scales are compared.

    Examples:
        >>> mean_outcome("norm_acc", "ties")
        'norm_acc_ties/mean'
    """
    return f"{target}_{method}/mean"


def worst_outcome(target: str, method: str) -> str:
    """Return the name under which the lowest outcome over pairs is logged.

    Args:
        target: `norm_acc` or `acc`.
        method: the merge method.

    Examples:
        >>> worst_outcome("norm_acc", "ties")
        'norm_acc_ties/worst'
    """
    return f"{target}_{method}/worst"


def correlation(protocol: str, target: str, method: str, predictor: str) -> str:
    """Return the name under which the correlation of predicted and measured outcomes is logged.

    Args:
        protocol: of the validation, such as `loto`.
        target: `norm_acc` or `acc`.
        method: the merge method.
        predictor: name of the predictor.

    Examples:
        >>> correlation("loto", "norm_acc", "ties", "ridge")
        'r/loto/norm_acc/ties/ridge'
    """
    return f"r/{protocol}/{target}/{method}/{predictor}"


def summarised(name: str, direction: str = "max") -> str:
    """Return the key under which W&B stores the best value of a logged number.

    Args:
        name: of the number.
        direction: `max` or `min`.

    Examples:
        >>> summarised("norm_acc_ties/mean")
        'norm_acc_ties/mean.max'
    """
    return f"{name}.{direction}"


def prediction_table(name: str) -> str:
    """Return the name under which a table of the study of predictors is logged.

    Args:
        name: of its file in `prediction/`, without the suffix.

    Examples:
        >>> prediction_table("fingerprints")
        'prediction/fingerprints'
    """
    return f"prediction/{name}"
