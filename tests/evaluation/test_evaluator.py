"""The evaluator against NumPy: batches, precision, devices, subsets, splits, and what is never computed twice."""

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from mergeability.data.tasks import Images
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator
from mergeability.files import digest
from mergeability.models.classify import accuracy, correct
from mergeability.store import Store
from mergeability.weights.checkpoints import tensors_hash

TASKS = ("red", "green")
COUNT, CLASSES, WIDTH = 61, 5, 24
SCALE = {"scale": 255}


class Encoder(nn.Module):
    """Two layers; notes how it was used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, WIDTH)
        self.second = nn.Linear(WIDTH, 8)
        nn.init.zeros_(self.first.weight)
        self.dtypes: set[torch.dtype] = set()
        self.batches: list[torch.Tensor] = []
        self.training_seen: set[bool] = set()
        self.loads = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(images)
        self.training_seen.add(self.training)
        features = self.second(torch.relu(self.first(images.flatten(1))))
        self.dtypes.add(features.dtype)
        return features

    def load_state_dict(self, *arguments, **options):
        self.loads += 1
        return super().load_state_dict(*arguments, **options)


def preprocess(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def made_images(seed: int, count: int = COUNT) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 2, 2), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, CLASSES, (count,), generator=generator))


TESTS = {task: made_images(seed) for seed, task in enumerate(TASKS)}
VALIDATION = {task: made_images(seed + 10, 40) for seed, task in enumerate(TASKS)}
HEADS = {
    task: torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(seed))
    for seed, task in enumerate(TASKS)
}


SHAPES = {name: tensor.shape for name, tensor in Encoder().state_dict().items()}


def weights(seed: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
    # Seeds whose models see all of the classes.
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        f"visual.{name}": scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()
    }


def hits_by_hand(state: Mapping[str, torch.Tensor], images: Images, head: torch.Tensor) -> np.ndarray:
    parts = {name.removeprefix("visual."): tensor.double().numpy() for name, tensor in state.items()}
    pixels = images.images.numpy().reshape(len(images), -1) / 255
    hidden = np.maximum(pixels @ parts["first.weight"].T + parts["first.bias"], 0)
    logits = (hidden @ parts["second.weight"].T + parts["second.bias"]) @ head.double().numpy().T
    return logits.argmax(1) == images.labels.numpy()


def never() -> dict[str, torch.Tensor]:
    pytest.fail("weights were made that nobody needs")


@pytest.fixture
def make(tmp_path) -> Callable[..., Evaluator]:
    """Return a function that makes judges of one store on disk, with any of their fields changed."""

    def made(**changes) -> Evaluator:
        fields = {
            "heads": HEADS,
            "tests": TESTS,
            "validation": VALIDATION,
            "store": Store(tmp_path / "store"),
        }
        return Evaluator(
            **{"encoder": Encoder(), "preprocess": preprocess, "configuration": SCALE} | fields | changes
        )

    return made


def judged(evaluator: Evaluator, seed: int = 0, tasks=TASKS, split: str = "test") -> dict[str, float]:
    return evaluator.accuracies({"file": str(seed)}, lambda: weights(seed), tasks, split)


def records(evaluator: Evaluator) -> list[dict]:
    return [json.loads(path.read_text())["value"] for path in evaluator.store.root.rglob("accuracy/*/*.json")]


def test_the_key_of_accuracies_names_another_device_or_precision_than_the_usual(make):
    usual = make().key("red")
    assert make(device="cuda:1").key("red") == make(device="cuda").key("red") == usual | {"device": "cuda"}
    assert make(precision="bfloat16").key("red") == usual | {"precision": "bfloat16"}
    assert make().key("green") != usual


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_accuracies_are_shares_counted_by_hand(make, seed, split):
    images = {"test": TESTS, "validation": VALIDATION}[split]
    found = judged(make(), seed, split=split)
    for task in TASKS:
        assert found[task] == hits_by_hand(weights(seed), images[task], HEADS[task]).sum() / len(images[task])


def test_a_record_says_how_many_of_how_many(make):
    evaluator = make()
    judged(evaluator, tasks=("red",))
    right = int(hits_by_hand(weights(), TESTS["red"], HEADS["red"]).sum())
    assert records(evaluator) == [{"accuracy": right / COUNT, "images": COUNT, "correct": right}]


def test_accuracies_of_older_stores_are_found_and_read(make):
    """What an accuracy was filed under before there were devices, precisions and subsets, with what was said then."""
    evaluator = make()
    key = {
        "weights": {"file": "old"},
        "head": tensors_hash({"head": HEADS["red"]}),
        "images": TESTS["red"].fingerprint,
        "encoder": digest({"encoder": repr(Encoder()), "configuration": SCALE}),
        "version": "1",
    }
    evaluator.store.record("accuracy", key, lambda: {"accuracy": 0.25, "images": 4})
    for same in (
        evaluator,
        make(batch_size=3),
        make(device="cpu:0"),
        make(subset_seed=8),
        make(validation_subset=2),
    ):
        assert same.accuracies({"file": "old"}, never, ("red",)) == {"red": 0.25}


@pytest.mark.parametrize("batch_size", [1, 7, 60, 61, 256])
def test_the_batch_size_changes_no_hit(make, batch_size):
    evaluator = make(batch_size=batch_size, subset=COUNT)
    found = evaluator.hits({"file": "0"}, weights, TASKS)
    assert max(map(len, evaluator.encoder.batches)) == min(batch_size, COUNT)
    for task in TASKS:
        np.testing.assert_array_equal(found[task], hits_by_hand(weights(), TESTS[task], HEADS[task]))


def test_both_tasks_are_measured_in_one_swap_of_the_weights(make):
    evaluator = make()
    judged(evaluator)
    assert evaluator.encoder.loads == 1
    evaluator.accuracies({"file": "0"}, never, TASKS)
    assert evaluator.encoder.loads == 1


def test_weights_are_swapped_again_where_another_models_came_between(make):
    evaluator = make(subset=50)
    judged(evaluator, 0, tasks=("red",))
    judged(evaluator, 1)
    found = evaluator.hits({"file": "0"}, weights, ("green",))["green"]
    alone = make(subset=50, store=Store(None)).hits({"file": "0"}, weights, ("green",))["green"]
    np.testing.assert_array_equal(found, alone)


def agreed_images() -> dict[str, Images]:
    """Images whose labels are the classes that float64 sees in them."""
    found = {}
    for seed, task in enumerate(TASKS):
        pixels = made_images(seed + 20, 2000).images
        right = [
            hits_by_hand(weights(), Images(pixels, torch.full((2000,), label)), HEADS[task])
            for label in range(CLASSES)
        ]
        found[task] = Images(pixels, torch.from_numpy(np.argmax(right, axis=0)))
    return found


def test_bfloat16_is_used_and_agrees_with_exact_sums_but_for_a_few_images(make):
    tests = agreed_images()
    short, plain = make(tests=tests, precision="bfloat16"), make(tests=tests)
    assert all(share >= 0.9995 for share in judged(plain).values())
    # Which it would not be, were results of one precision handed out for the other.
    assert all(0.98 <= share < 0.9995 for share in judged(short).values())
    assert short.encoder.dtypes == {torch.bfloat16}
    assert plain.encoder.dtypes == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in short.encoder.parameters())


def test_another_device_has_an_encoder_of_its_own_and_the_same_results(make):
    here, there = make(store=Store(None)), make(store=Store(None), device="cpu:0")
    before = {name: tensor.clone() for name, tensor in there.encoder.state_dict().items()}
    assert judged(there) == judged(here)
    assert all(torch.equal(tensor, before[name]) for name, tensor in there.encoder.state_dict().items())
    assert there.encoder.batches == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU: there is no GPU here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_agrees_with_the_cpu_but_for_a_few_images(make, precision):
    evaluator = make(tests=agreed_images(), device="cuda", precision=precision)
    assert all(share >= 0.98 for share in judged(evaluator).values())


def seen(evaluator: Evaluator, task: str, seed: int = 0) -> list[int]:
    """Say which test images a evaluator looks at."""
    position = {preprocess(image).numpy().tobytes(): place for place, image in enumerate(TESTS[task].images)}
    evaluator.encoder.batches.clear()
    judged(evaluator, seed, tasks=(task,))
    return [position[image.numpy().tobytes()] for batch in evaluator.encoder.batches for image in batch]


def test_a_subset_is_drawn_without_replacement_and_measured(make):
    evaluator = make(subset=20)
    places = seen(evaluator, "red")
    assert len(set(places)) == len(places) == 20
    assert places != list(range(20))
    expected = hits_by_hand(weights(), TESTS["red"], HEADS["red"])[places]
    assert judged(evaluator, tasks=("red",)) == {"red": expected.sum() / 20}
    np.testing.assert_array_equal(evaluator.hits({"file": "0"}, never, ("red",))["red"], expected)


def test_a_subset_depends_on_the_task_the_split_and_the_seed_alone(make):
    evaluator, state = make(subset=20), torch.random.get_rng_state()
    first = seen(evaluator, "red")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    alone = {"tests": {"red": TESTS["red"]}, "heads": {"red": HEADS["red"]}, "validation": {}}
    assert seen(make(subset=20, store=Store(None), **alone), "red") == first
    assert seen(make(subset=20, subset_seed=1), "red") != first
    same_images = {"red": TESTS["red"], "rouge": TESTS["red"]}
    heads = {"red": HEADS["red"], "rouge": HEADS["red"]}
    evaluator = make(subset=20, tests=same_images, heads=heads, store=Store(None))
    assert seen(evaluator, "red") == first
    evaluator.encoder.batches.clear()
    judged(evaluator, tasks=("rouge",))
    assert not torch.equal(torch.cat(evaluator.encoder.batches), preprocess(TESTS["red"].images[first]))


def test_a_subset_of_more_images_than_there_are_is_all_of_them(make):
    evaluator = make(subset=COUNT + 1)
    assert seen(evaluator, "red") == list(range(COUNT))
    expected = hits_by_hand(weights(), TESTS["red"], HEADS["red"])
    np.testing.assert_array_equal(evaluator.hits({"file": "0"}, never, ("red",))["red"], expected)


def test_tests_and_validation_have_subsets_of_their_own(make):
    evaluator = make(subset=20, validation_subset=15)
    judged(evaluator, split="validation")
    assert sum(map(len, evaluator.encoder.batches)) == 2 * 15
    assert all(record["images"] == 15 and "hits" not in record for record in records(evaluator))
    plain = make(subset=20)
    judged(plain, split="validation")
    assert sum(map(len, plain.encoder.batches)) == 2 * 40


def test_hits_are_kept_only_where_part_of_the_images_is_looked_at(make):
    evaluator = make()
    assert evaluator.hits({"file": "0"}, weights, TASKS) == {}
    assert all("hits" not in record for record in records(evaluator))
    chosen = make(subset=20)
    assert set(chosen.hits({"file": "0"}, weights, TASKS)) == set(TASKS)
    # 20 bits are 3 bytes, and those are 4 letters.
    assert sorted(len(record.get("hits", "")) for record in records(evaluator)) == [0, 0, 4, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"subset": 20},
        {"subset": 21},
        {"subset": 20, "subset_seed": 1},
        {"subset": COUNT},
        {"tests": {"red": VALIDATION["red"]}},
        {"heads": {"red": HEADS["green"]}},
        {"configuration": {"scale": 1}},
    ],
)
def test_what_changes_numbers_is_a_new_result_and_found_again(make, changes):
    for other in ({}, {"subset": 20, "subset_seed": 2}):
        judged(make(**other), tasks=("red",))
    evaluator = make(**changes)
    judged(evaluator, tasks=("red",))
    assert evaluator.store.computed["accuracy"] == 1
    again = make(**changes)
    assert again.accuracies({"file": "0"}, never, ("red",)) == judged(evaluator, tasks=("red",))


def test_weights_that_overflow_are_an_error_and_no_accuracy_by_chance(make):
    evaluator, huge = make(), weights(scale=1e30)
    assert all(torch.isfinite(tensor).all() for tensor in huge.values())
    with pytest.raises(
        UserError, match=r"The model to be tested on red, green: Expected finite logits, got NaN or Inf"
    ):
        evaluator.accuracies({"file": "huge"}, lambda: huge, TASKS)
    assert records(evaluator) == []
    with pytest.raises(UserError, match="tested on red: Expected finite logits"):
        judged(make(heads={"red": torch.full((CLASSES, 8), torch.nan)}), tasks=("red",))


def test_one_image_that_is_not_finite_is_enough(make):
    """In the last batch, and NaN: the highest of logits that are NaN is the first."""

    class Rarely(Encoder):
        def forward(self, images):
            features = super().forward(images)
            return torch.where(images.flatten(1).sum(1, keepdim=True) == 0, torch.nan, features)

    images = made_images(3)
    pixels = images.images.clone()
    pixels[-1] = 0
    black = {"red": Images(pixels, images.labels)}
    with pytest.raises(UserError, match="Expected finite logits"):
        judged(make(encoder=Rarely(), tests=black, batch_size=25), tasks=("red",))
    assert judged(make(encoder=Rarely(), tests={"red": images}, batch_size=25), tasks=("red",))


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_works_in_evaluation_mode_and_gets_its_own_back(training):
    encoder = Encoder().train(training)
    encoder.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in weights().items()})
    found = correct(encoder, HEADS["red"], preprocess, TESTS["red"], batch_size=16)
    assert encoder.training_seen == {False}
    assert encoder.training is training
    np.testing.assert_array_equal(found, hits_by_hand(weights(), TESTS["red"], HEADS["red"]))
    assert accuracy(encoder, HEADS["red"], preprocess, TESTS["red"]) == found.sum() / COUNT
    with pytest.raises(UserError, match="finite"):
        correct(encoder, HEADS["red"] * torch.inf, preprocess, TESTS["red"])
    assert encoder.training is training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float16"}, "float32 or bfloat16, got 'float16'"),
        ({"subset": 0}, "subset to be at least 1, got 0"),
        ({"validation_subset": -1}, "validation_subset to be at least 1, got -1"),
        ({"batch_size": 0}, "batch_size to be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_a_split_without_images_is_named(make):
    with pytest.raises(UserError, match=r"No validation split for 'red'\. Tasks with this split: none"):
        judged(make(validation={}), split="validation")
    with pytest.raises(UserError, match="No train split for 'red'"):
        judged(make(), split="train")
    with pytest.raises(UserError, match=r"No test split for 'green'\. Tasks with this split: red"):
        judged(make(tests={"red": TESTS["red"]}))
