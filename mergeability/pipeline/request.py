"""Define the request of an analysis, which `analyze.py` creates from its configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mergeability.checks import Count, NotNegative, Positive, Seed, is_count
from mergeability.errors import UserError
from mergeability.evaluation.model_sets import MergeSets
from mergeability.evaluation.scales import GRID, ScaleChoice
from mergeability.merging.method import MergeMethod
from mergeability.metrics.catalogue import Metric
from mergeability.pipeline.own_models import ModelSuite
from mergeability.pipeline.suites import CheckpointSuite, Layout, TableSuite, TaskSuite
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.scorer import MARGIN
from mergeability.prediction.study import StudySettings

FEWEST_UNLABELLED = 8
UNLABELLED_SPLITS = ("validation", "train")


@dataclass(frozen=True)
class ProfileSettings:
    """Hold the options for the profiles of models: calibration samples, layer, tensor layout and memory limit.

    Attributes:
        samples: calibration images of each task.
        seed: seed of their choice.
        layer: dotted name of the layer whose activations are averaged; the last block when None.
        pool: the tasks whose images make the pool of the activations; all of the suite when None.
        split_qkv: treat the queries, keys and values of a fused attention as three matrices.
        matricize: "conv" treats convolution kernels as matrices, out × (in·height·width).
        memory_budget: memory for computed values, in GiB.
        merge_samples: calibration images of each task for the merge methods that need data; all validation
            images where there are fewer.
        unlabelled: images of each task for functional evidence, whose labels are not read; all if there are fewer.
        unlabelled_from: the split they are drawn from, `validation` or `train`.

    Examples:
        >>> from mergeability.pipeline.request import ProfileSettings
        >>> ProfileSettings(samples=20, split_qkv=True).layout
        Layout(split_qkv=True, matricize=None)
    """

    samples: Count = 10
    merge_samples: Count = 256
    unlabelled: int = 64
    unlabelled_from: Literal["validation", "train"] = "validation"
    seed: Seed = 42
    layer: str | None = None
    pool: Sequence[str] | None = None
    split_qkv: bool = False
    matricize: Literal["conv"] | None = None
    memory_budget: Positive = 4

    def __post_init__(self) -> None:
        if self.merge_samples < 1:
            raise UserError(
                f"Expected at least one calibration image, got merge_samples={self.merge_samples}."
            )
        if not is_count(self.unlabelled, least=FEWEST_UNLABELLED):
            raise UserError(
                f"Expected profile.unlabelled to be a number of images that is at least {FEWEST_UNLABELLED}, got"
                f" {self.unlabelled!r}. Fewer images give unreliable estimates."
            )
        if self.unlabelled_from not in UNLABELLED_SPLITS:
            raise UserError(
                f"Expected profile.unlabelled_from to be {' or '.join(UNLABELLED_SPLITS)}, got"
                f" {self.unlabelled_from!r}. Test images are only for evaluation."
            )

    @property
    def layout(self) -> Layout:
        """The way in which tensors are split into parameters for metrics and merges."""
        return Layout(self.split_qkv, self.matricize)


@dataclass(frozen=True)
class MergeSettings:
    """Hold the options of merges: what is merged, at which scales, how it is evaluated and what is saved.

    Attributes:
        pairs: the pairs to merge, [[a, b], …]; every one when None.
        arity: number of models per merge: a number, "all", or a list of these.
        sets: number of sets of each size to draw; all when None.
        evaluate: number of pairs to merge and evaluate, chosen to predict the others best; all
            when None.
        seed: seed of the draw and of the choice.
        alpha: None for each method's own scale, a number, "tuned", "unlabelled", "both", or a list of words.
        alpha_grid: candidate scales for tuning.
        validation_images: number of validation images per task for tuning.
        probe: number of unlabelled images per task for probes of every merge; None: no probes.
        test_images: number of test images per task; all when None.
        save: whether to write the merged encoders.
        export: "hf" writes them under Hugging Face's names.
        dtype: dtype of the written weights: float32, float16 or bfloat16; None for the base's own.

    Examples:
        >>> from mergeability.pipeline.request import MergeSettings
        >>> settings = MergeSettings(arity=[2, 3], alpha="tuned", save=True)
        >>> settings.keeps, settings.chosen_sets.arity
        (True, [2, 3])
    """

    pairs: Sequence[Sequence[str]] | None = None
    arity: int | str | Sequence[int | str] = 2
    sets: Count | None = None
    evaluate: Count | None = None
    seed: Seed = 0
    alpha: float | int | str | Sequence[str] | None = None
    alpha_grid: Sequence[float | int] = GRID
    validation_images: Count = 1000
    probe: Count | None = None
    test_images: Count | None = None
    save: bool = False
    export: Literal["hf"] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        for name in ("validation_images", "test_images"):
            count = getattr(self, name)
            if count is not None and not is_count(count, least=1):
                raise UserError(f"Expected {name} to be a positive number of images, got {count!r}.")
        if self.probe is not None and not is_count(self.probe, least=FEWEST_UNLABELLED):
            raise UserError(
                f"Expected probe to be null or a number of images that is at least {FEWEST_UNLABELLED}, got"
                f" {self.probe!r}."
            )
        if self.export not in (None, "hf"):
            raise UserError(f"Expected export to be hf or null, got {self.export!r}.")
        self._check_budget()
        # Constructed only to validate the arguments, because errors would otherwise appear after minutes.
        _ = self.chosen_sets, self.scales

    def _check_budget(self) -> None:
        if self.evaluate is None:
            return
        if not is_count(self.evaluate, least=1):
            raise UserError(
                f"Expected evaluate to be a whole number of at least 1 or null, got {self.evaluate!r}."
            )
        if self.arity not in (2, [2]) or self.sets is not None:
            raise UserError(
                "evaluate=… can only choose pairs. To evaluate some of the pairs, remove arity=… and sets=…. To limit"
                " the number of larger sets, remove evaluate=… and set sets=…."
            )

    @property
    def chosen_sets(self) -> MergeSets:
        """The choice of sets of models."""
        return MergeSets(self.pairs, self.arity, self.sets, self.seed)

    @property
    def scales(self) -> ScaleChoice:
        """The scales of merges."""
        return ScaleChoice(self.alpha, self.alpha_grid)

    @property
    def keeps(self) -> bool:
        """Whether merged encoders are saved."""
        return self.save or self.export is not None


@dataclass(frozen=True)
class Request:
    """Specify an analysis: its models, metrics, merges, predictors and options.

    Attributes:
        suite: the models or the table to analyse.
        metrics: name → metric.
        merges: name → merge method.
        predictors: name → scikit-learn regressor.
        prediction: settings of the prediction study.
        fitted: folder or file of a predictor fitted by an earlier run, which scores every pair; None for none.
        margin: how far a metric may lie outside the predictor's training range, as a share of that range, at least 0.
        profile: options of the evidence.
        merging: which sets are merged, at which scales, and how merges are evaluated and saved.
        store: folder of the store; in memory when None.
        on_error: "raise", or "nan" to continue without a metric that fails.
        device: device of the evidence and evaluation: "cpu", "cuda", or "auto".
        workers: number of processes that share the work, or the address of a Ray cluster.
        folder: folder that gets merged encoders, in `merged/`; None if nothing is written.

    Examples:
        >>> from mergeability.merging import Ties
        >>> from mergeability.metrics.catalogue import WEIGHT_SPACE
        >>> from mergeability.pipeline import Request
        >>> from mergeability.pipeline.suites import CheckpointSuite
        >>> suite = CheckpointSuite("mine", "base.safetensors", {"a": "a.safetensors", "b": "b.safetensors"})
        >>> request = Request(suite, WEIGHT_SPACE, {"ties": Ties(density=0.2)})
        >>> len(request.metrics), request.device, request.merging.arity
        (18, 'auto', 2)
    """

    suite: TaskSuite | ModelSuite | CheckpointSuite | TableSuite
    metrics: Mapping[str, Metric]
    merges: Mapping[str, MergeMethod] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    prediction: StudySettings = field(default_factory=StudySettings)
    fitted: str | None = None
    margin: NotNegative = MARGIN
    profile: ProfileSettings = ProfileSettings()
    merging: MergeSettings = MergeSettings()
    store: str | None = None
    on_error: Literal["raise", "nan"] = "raise"
    device: str = "auto"
    workers: Count | str = 1
    folder: Path | None = None
