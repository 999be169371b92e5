"""Every configuration composes and can be instantiated; none of version 0.1.0 is lost."""

import functools
import gc
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mergeability.commands import naming, record
from mergeability.commands.sets import derived_sets
from mergeability.errors import UserError
from mergeability.examples import tiny_text_model
from mergeability.files import digest

CONF = Path(__file__).parent.parent.parent / "conf"
# Version 0.1.0: the options of every group, and the members of every set in the order of tables. None may get lost.
PUBLISHED = json.loads((CONF.parent / "tests/published/members_0.1.0.json").read_text())
# A group that is newer has no option to lose.
NEWER = {"architecture"}
GROUPS = sorted({*PUBLISHED["options"], *NEWER})
# The order of the benchmark's table: a suite is the first 8, 14 or 20.
REAL = [
    *("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"),
    *("flowers102", "pcam", "fer2013", "oxford_iiit_pet", "stl10", "cifar100"),
    *("cifar10", "food101", "fashion_mnist", "emnist", "kmnist", "rendered_sst2"),
]
TRAIN_ONLY = {"task", "trainer", "run", "experiment"}
# Experiments belong to one of the two scripts each.
ANALYZE_EXPERIMENTS = {
    "architectures",
    "evidence",
    "paper_v1",
    "paper_icml",
    "regularisation",
    "regularisation_sweep",
}
ANALYZE_ONLY = {"architecture", "suite", "merge", "metric", "predictor", "profile"}


# What a suite needs to be named on the command line.
def of_texts() -> list[str]:
    """Name a BERT that is there without the extra `text`."""
    return [f"model.pretrained={tiny_text_model().folder}", "model.sha256=null", "model.context_length=8"]


NEEDED = {
    "checkpoints": ["suite.base=base.safetensors", "suite.models={a: a.safetensors, b: b.safetensors}"],
    "table": ["suite.table=pairs.csv"],
    "models": [
        "suite.base=base.safetensors",
        "suite.models={a: {weights: a.safetensors, images: a, classes: [x, y]}, "
        "b: {weights: b.safetensors, images: b, head: b_head.safetensors}}",
    ],
    "import": ["source=model.safetensors"],
}


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def options(group: str) -> list[str]:
    """Everything that may be chosen of a group: its files, and the sets that derive from them."""
    return sorted({*files(group), *derived_sets().get(group, {})})


def members(group: str) -> list[str]:
    """What is itself a metric, a method or a predictor, and not a set of them."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if "\n_target_:" in path.read_text())


# Groups of which a command takes several members: those that are no sets are composed together.
SEVERAL = ("merge", "metric", "predictor")
TOGETHER = [(group, name) for group in SEVERAL for name in members(group)]
EVERY = [(group, name) for group in GROUPS for name in options(group)]
ALONE = [pytest.param(*member, marks=pytest.mark.slow) if member in TOGETHER else member for member in EVERY]


@functools.cache
def composed(primary: str, *overrides: str) -> DictConfig:
    """Compose once, since that takes a second; who changes what this returns changes it for the others."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose(primary, list(overrides))
    # A composition has thousands of nodes, which every later garbage collection would look at.
    gc.freeze()
    return found


# The smallest suite, where a test is not about suites: the classes of twenty tasks take most of a composition's time.
SMALL = "suite=smoke"


def together(group: str) -> DictConfig:
    """Compose every member of a group that is no set, in one configuration."""
    return composed("analyze", f"{group}=[{','.join(members(group))}]", SMALL)


def without_runtime(node: DictConfig) -> DictConfig:
    """Replace what only exists inside a job."""

    def replaced(value):
        if isinstance(value, dict):
            return {key: replaced(one) for key, one in value.items()}
        if isinstance(value, list):
            return [replaced(one) for one in value]
        if isinstance(value, str) and "${" in value:
            return re.sub(r"\$\{now:[^}]*\}", "now", re.sub(r"\$\{hydra:[^}]*\}", "RUN_FOLDER", value))
        return value

    return OmegaConf.create(replaced(OmegaConf.to_container(node, resolve=False)))


def test_no_published_option_is_lost():
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert folders == set(GROUPS), "a new group belongs into NEWER"
    assert not NEWER & set(PUBLISHED["options"])
    lost = {group: set(own) - set(options(group)) for group, own in PUBLISHED["options"].items()}
    assert not any(lost.values()), lost
    assert sum(map(len, PUBLISHED["options"].values())) == 147


# What another file is called now than in version 0.1.0.
MOVED = {
    "mergeability.metrics.shared": "mergeability.metrics.same_samples",
    "mergeability.finetuning.penalties.mergeability.Mergeability": (
        "mergeability.finetuning.penalties.weighted_sum.WeightedSum"
    ),
}
# The YAML files of version 0.1.0: a name that is published stands for the same computation.
OPTIONS = json.loads((CONF.parent / "tests/published/options_0.1.0.json").read_text())


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, found in OPTIONS.items() for name in found]
)
def test_a_published_name_still_stands_for_what_it_did(group, name):
    before = json.dumps(OPTIONS[group][name])
    for then, now in MOVED.items():
        before = before.replace(then, now)
    assert OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml")) == json.loads(before)


def test_what_was_composed_before_changes_nothing():
    """The session keeps the files that Hydra reads: no override of one composition may stay in the next."""
    changes = {
        "analyze": ["suite=smoke", "seed=5", "alpha_grid=[1]", "suite.tasks.digits.source.train=3", "profile.samples=3",
                    "merge=ties", "merge.ties.density=0.7", "~suite.tasks.letters", "prediction.protocols=[halves]"],
        "train": ["task=cars", "seed=4", "training.epochs=9", "reg=mergeability", "reg.lambda=2",
                  "reg.penalty.terms.subspace.strength=3"],
    }  # fmt: skip
    plain = {"analyze": ["suite=smoke", "merge=ties"], "train": ["task=cars", "reg=mergeability"]}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for primary, overrides in changes.items():
            before = compose(primary, plain[primary], return_hydra_config=True)
            changed = compose(primary, overrides, return_hydra_config=True)
            after = compose(primary, plain[primary], return_hydra_config=True)
            assert OmegaConf.to_container(after) == OmegaConf.to_container(before)
            assert changed != before


@pytest.mark.parametrize("group", SEVERAL)
def test_members_compose_together_with_everything_resolved(group):
    cfg = without_runtime(together(group))
    found = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert list(found[group]) == members(group)


@pytest.mark.parametrize(("group", "name"), TOGETHER, ids=lambda value: value)
def test_every_member_resolves_and_defines_nothing_but_itself(group, name):
    text = (CONF / group / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package {group}.{name}\n")
    assert "defaults:" not in text
    found = OmegaConf.to_container(without_runtime(together(group)[group]), throw_on_missing=True)
    assert found[name]


@pytest.mark.parametrize(("group", "name"), ALONE, ids=lambda value: value)
def test_every_member_composes_with_everything_resolved(group, name):
    primaries = [
        p for p in ("train", "analyze") if group not in (TRAIN_ONLY if p == "analyze" else ANALYZE_ONLY)
    ]
    if group == "experiment" and name in ANALYZE_EXPERIMENTS:
        primaries = ["analyze"]
    for primary in primaries:
        choice = f"+{group}={name}" if group == "experiment" else f"{group}={name}"
        of_suites = primary == "train" or group in ("suite", "experiment")
        needed = NEEDED.get(name, []) if of_suites else [SMALL]
        if group == "run" and name in ("pretrain", "import"):
            continue  # Composed by experiment=pretrain_mini and experiment=import.
        cfg = composed(primary, choice.removeprefix("+"), *needed)
        OmegaConf.to_container(without_runtime(cfg), resolve=True, throw_on_missing=True)


def test_the_papers_comparisons_have_its_methods_with_its_options():
    first, second = (composed("analyze", f"experiment={name}") for name in ("paper_v1", "paper_icml"))
    assert list(first.merge) == ["average", "ta", "tsv", "iso_c"]
    assert first.merge.iso_c.truncate is True
    assert list(second.merge) == ["average", "ta", "tsv", "ties", "dare"]
    assert (second.merge.ties.scope, second.merge.ties.alpha) == ("tensor", 0.3)
    for cfg in (first, second):
        assert len(cfg.metric) == 28
        assert cfg.model.name == "vit_b16"
        assert cfg.merge.ta.alpha == 0.3


@pytest.mark.parametrize(("name", "optimizer"), [("paper_adamw", "adamw"), ("paper_sgd", "sgd")])
def test_the_papers_trainings_have_its_recipe(name, optimizer):
    cfg = composed("train", f"experiment={name}")
    settings = instantiate(cfg.training, _convert_="all")
    assert (settings.optimizer, settings.momentum, settings.learning_rate) == (optimizer, 0.9, 1e-5)
    assert (settings.batch_size, settings.accumulate, settings.gradient_clip) == (64, 2, 10)
    assert cfg.trainer.precision == "32-true"
    assert cfg.folder.endswith(f"vit_b16/none-0+{name}/seed-0/digits")
    # What the analysis looks for is what the training leaves.
    assert composed("analyze", "experiment=paper_v1").suite.trained == "none-0+paper_adamw/seed-0"


def test_the_ablation_is_of_every_penalty_at_the_asked_strengths_with_three_seeds():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in ("regularisation", "regularisation_sweep"):
            cfg = compose("analyze", [f"experiment={name}"], return_hydra_config=True)
            assert cfg.hydra.mode.name == "MULTIRUN", "no -m is needed"
            assert (
                cfg.hydra.callbacks.ledger.summary == "mergeability.reporting.ablation.summary.write_summary"
            )
            assert (cfg.suite.name, cfg.model.name, cfg.train.missing) == ("mini", "clip_mini", True)
            assert list(cfg.merge) == derived_sets()["merge"]["all"]
            if name == "regularisation":
                params = cfg.hydra.sweeper.params
                assert set(params.reg.split(",")) == set(PUBLISHED["options"]["reg"]) - {"none"}
                assert params["reg.lambda"] == "0,0.01,0.1,1,10"
                assert params.seed == "0,1,2"


def test_evidence_is_compared_on_old_and_new_tasks_from_several_numbers_of_images():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("analyze", ["experiment=evidence", "images=[32,20]"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN", "no -m is needed"
    assert list(cfg.hydra.sweeper.params) == ["images", "seed"], "all seeds of the default numbers first"
    assert cfg.hydra.sweeper.params["images"].startswith("[64,10],")
    assert cfg.hydra.callbacks.ledger.summary == "mergeability.reporting.evidence.summary.write_summary"
    assert (cfg.profile.unlabelled, cfg.probe, cfg.profile.samples) == (32, 32, 20)
    assert (cfg.suite.name, cfg.model.name, cfg.suite.trained) == ("mini20", "clip_mini20", "none-0/seed-0")
    assert [*cfg.task_groups.old, *cfg.task_groups.new] == list(cfg.suite.tasks)
    assert list(cfg.task_groups.old) == list(composed("analyze", "suite=mini").suite.tasks)
    assert list(cfg.merge) == list(composed("analyze", "merge=paper", SMALL).merge)


def test_architectures_are_couples_of_a_model_and_its_suite():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("analyze", ["experiment=architectures"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN", "no -m is needed"
    params = cfg.hydra.sweeper.params
    assert list(params) == ["architecture", "seed"]
    assert set(params.architecture.split(",")) == set(files("architecture")), (
        "a new architecture is swept, too"
    )
    assert cfg.hydra.callbacks.ledger.summary == "mergeability.reporting.architectures.summary.write_summary"
    assert list(cfg.merge) == list(composed("analyze", "merge=paper", SMALL).merge)
    assert set(derived_sets()["metric"].get("paper", cfg.metric)) <= set(cfg.metric)
    assert (cfg.probe, cfg.profile.unlabelled, cfg.profile.matricize) == (64, 64, None)


@pytest.mark.parametrize("name", files("architecture"))
def test_an_architecture_sets_model_and_suite_of_the_experiment(name):
    cfg = composed("analyze", "experiment=architectures", f"architecture={name}")
    assert cfg.model.name == name
    assert cfg.suite.model.name == name
    assert cfg.suite.trained == "none-0/seed-0"
    # Kernels of convolutions are matrices only where they are asked to be.
    assert (cfg.profile.matricize == "conv") == ("resnet" in name)


def test_smaller_patches_are_all_that_patch4_changes():
    plain, other = (
        OmegaConf.to_container(composed("analyze", SMALL, f"model={name}").model, resolve=True)
        for name in ("clip_mini", "clip_mini_patch4")
    )
    assert other["architecture"]["vision_cfg"].pop("patch_size") == 4
    assert plain["architecture"]["vision_cfg"].pop("patch_size") == 8
    named = {
        "name": "clip_mini_patch4",
        "base_command": "python train.py experiment=pretrain_mini model=clip_mini_patch4",
    }
    assert other == plain | named


def test_mini20_is_the_ten_of_mini_and_ten_more():
    small, large = (composed("analyze", f"suite={name}") for name in ("mini", "mini20"))
    first, tasks = list(small.suite.tasks), list(large.suite.tasks)
    assert len(tasks) == 20
    assert tasks[:10] == first
    assert [large.suite.tasks[name] for name in first] == [small.suite.tasks[name] for name in first]
    assert (small.model.name, large.model.name) == ("clip_mini", "clip_mini20")
    assert large.suite.trained == "none-0/seed-0"
    named = OmegaConf.to_container(large.model, resolve=True)
    others = {"name": "clip_mini", "base_command": "python train.py experiment=pretrain_mini"}
    assert named | others == OmegaConf.to_container(small.model, resolve=True)


def test_the_base_of_mini20_has_seen_what_was_drawn_for_it():
    """The rule of docs/decisions/0020-mini20.md, once more."""
    import torch

    from mergeability.data.rendered import SUBJECTS
    from mergeability.random import seeded_generator

    old, new = (composed("train", f"experiment={name}") for name in ("pretrain_mini", "pretrain_mini20"))
    twelve = list(old.pretraining.subjects)
    later = sorted(set(SUBJECTS) - set(twelve))
    generator = seeded_generator("subjects that the base of mini20 has seen", 0)
    drawn = [later[position] for position in torch.randperm(len(later), generator=generator)[:6].tolist()]
    assert len(twelve) == 12
    assert list(new.pretraining.subjects) == twelve + sorted(drawn)
    recipes = [OmegaConf.to_container(cfg.pretraining, resolve=True) for cfg in (old, new)]
    assert recipes[1] == recipes[0] | {"subjects": twelve + sorted(drawn), "steps": 700 * 18 // 12}
    assert new.folder.endswith("clip_mini20/base")


def test_the_trainings_of_mini20_are_of_all_its_tasks_with_three_seeds():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["experiment=train_mini20"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN", "no -m is needed"
    params = cfg.hydra.sweeper.params
    suite = composed("analyze", "suite=mini20").suite
    assert list(params) == ["seed", "task"], "all tasks of one seed first"
    assert [name.strip() for name in params.task.split(",")] == list(suite.tasks)
    assert params.seed == "0,1,2"
    # What the experiment trains is what an analysis of the suite would train.
    one, plain = (
        composed("train", *words, "task=covers", "seed=1")
        for words in (["experiment=train_mini20"], ["model=clip_mini20"])
    )
    assert record.settings(one) == record.settings(plain)
    assert one.folder == plain.folder
    assert one.folder.endswith("clip_mini20/none-0/seed-1/covers")


@pytest.mark.parametrize("name", sorted({path.stem for path in (CONF / "experiment").glob("*.yaml")}))
def test_every_experiment_begins_with_the_command_that_runs_it(name):
    script = "analyze" if name in ANALYZE_EXPERIMENTS else "train"
    assert f"#   python {script}.py experiment={name}" in (CONF / "experiment" / f"{name}.yaml").read_text()


@pytest.fixture
def _no_dataset_can_be_opened(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)


@pytest.mark.usefixtures("_no_dataset_can_be_opened")
@pytest.mark.parametrize("name", files("task"))
def test_every_task_can_be_instantiated(name):
    task = instantiate(composed("train", f"task={name}").task, _convert_="all")
    assert task.name == name
    assert isinstance(task.class_names, list)


def test_real_tasks_have_the_published_classes_epochs_and_accuracies():
    """Numbers of the benchmark's table: classes, epochs, test accuracy of a fine-tuned ViT-B/16 in %."""
    table = {
        "sun397": (397, 14, 78.9),
        "cars": (196, 35, 85.8),
        "resisc45": (45, 15, 96.7),
        "eurosat": (10, 12, 99.1),
        "svhn": (10, 4, 97.5),
        "gtsrb": (43, 11, 98.9),
        "mnist": (10, 5, 99.7),
        "dtd": (47, 76, 82.9),
        "flowers102": (102, 147, 94.2),
        "pcam": (2, 1, 88.7),
        "fer2013": (7, 10, 73.7),
        "oxford_iiit_pet": (37, 82, 95.0),
        "stl10": (10, 60, 98.8),
        "cifar100": (100, 6, 89.3),
        "cifar10": (10, 6, 98.2),
        "food101": (101, 4, 90.9),
        "fashion_mnist": (10, 5, 95.2),
        "emnist": (10, 2, 99.4),
        "kmnist": (10, 5, 98.4),
        "rendered_sst2": (2, 39, 77.2),
    }
    assert list(table) == REAL
    for name, (classes, epochs, percent) in table.items():
        task = composed("train", f"task={name}").task
        assert len(set(task.class_names)) == len(task.class_names) == classes
        assert all(isinstance(one, str) and one == one.strip() for one in task.class_names)
        assert task.epochs == epochs
        assert task.expected_accuracy == pytest.approx(percent / 100, abs=1e-9)


def test_real_tasks_know_the_facts_that_are_easily_wrong():
    names = {name: list(composed("train", f"task={name}").task.class_names) for name in REAL}
    assert names["stl10"][:3] == ["airplane", "bird", "car"], "CIFAR-10 has automobile before bird"
    assert names["cifar10"][:3] == ["airplane", "automobile", "bird"]
    assert names["fer2013"] == ["angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
    assert names["eurosat"][0] == "annual crop land"
    assert names["gtsrb"][2] == "red and white circle 50 kph speed limit"
    assert names["gtsrb"][14] == "stop"
    assert names["flowers102"][:2] == ["pink primrose", "hard-leaved pocket orchid"]
    assert names["rendered_sst2"] == ["negative", "positive"]
    assert names["pcam"] == ["lymph node", "lymph node containing metastatic tumor tissue"]
    for digits in ("mnist", "svhn", "emnist"):
        assert names[digits] == [str(number) for number in range(10)]
    for alphabetical in ("resisc45", "dtd", "cifar100", "food101", "oxford_iiit_pet"):
        assert names[alphabetical] == sorted(names[alphabetical], key=str.casefold)
    templates = {name: len(composed("train", f"task={name}").task.templates) for name in REAL}
    published = {"sun397": 2, "cars": 8, "resisc45": 18, "eurosat": 3, "gtsrb": 3, "mnist": 1, "dtd": 8}
    published |= {"flowers102": 1, "pcam": 1, "fer2013": 6, "oxford_iiit_pet": 1, "stl10": 2, "cifar100": 18}
    published |= {"cifar10": 18, "food101": 1, "rendered_sst2": 1}
    assert {name: templates[name] for name in published} == published, "as CLIP published them"


@pytest.mark.parametrize("name", files("model"))
def test_every_model_can_be_built_without_memory_or_network(name):
    import torch

    weights = of_texts() if name == "minilm" else ["model.pretrained=null"]
    model = instantiate(composed("train", f"model={name}", *weights).model, _convert_="all")
    with torch.device("meta"):
        base = model.architecture_only()
    assert all(parameter.is_meta for parameter in model.encoder_of(base).parameters())
    assert model.name == name


@pytest.mark.usefixtures("_no_dataset_can_be_opened")
@pytest.mark.parametrize("name", files("suite"))
def test_every_suite_makes_a_request(name):
    from mergeability.pipeline.request import Request

    needed = of_texts() if name == "text8" else NEEDED.get(name, [])
    cfg = composed("analyze", f"suite={name}", *needed)
    request = instantiate(cfg.analysis, _convert_="all")
    assert isinstance(request, Request)
    assert request.suite.name == name
    if re.fullmatch(r"n\d+", name):
        assert list(request.suite.tasks) == REAL[: int(name[1:])]
    if name == "mini":
        assert len(request.suite.tasks) >= 10
        assert len(request.metrics) == 28
        assert set(request.merges) == {"average", "ta", "ties", "dare", "tsv", "iso_c"}
        assert list(request.predictors) == derived_sets()["predictor"]["all"]


@pytest.mark.parametrize("name", files("reg"))
def test_every_penalty_can_be_instantiated_and_takes_its_strength_from_lambda(name):
    cfg = composed("train", f"reg={name}", "reg.lambda=0.25")
    penalty = instantiate(cfg.reg.penalty, _convert_="all")
    assert (penalty is None) == (name == "none")
    if penalty is not None:
        assert penalty.strength == 0.25
        assert penalty.name == name == cfg.reg.name


@pytest.mark.parametrize("name", files("trainer"))
def test_every_trainer_option_is_one_of_lightnings(name):
    import inspect

    import lightning.pytorch as pl

    options = composed("train", f"trainer={name}").trainer
    assert set(options) <= set(inspect.signature(pl.Trainer).parameters)


@pytest.mark.parametrize("name", members("metric"))
def test_every_metric_is_under_its_own_name_and_the_packages_own(name):
    from mergeability.metrics.catalogue import CATALOGUE

    made, own = instantiate(together("metric").metric[name], _convert_="all"), CATALOGUE[name].metric
    assert (made.func, made.args, made.keywords) == (own.func, own.args, own.keywords)


@pytest.mark.parametrize("name", members("merge"))
def test_every_merge_method_is_under_its_own_name(name):
    alpha = instantiate(together("merge").merge[name], _convert_="all").alpha
    words = {"published", "tuned"} if name not in PUBLISHED["options"]["merge"] else {"published"}
    assert isinstance(alpha, int | float) or alpha in words
    assert (alpha == "published") == name.startswith("iso") or name not in PUBLISHED["options"]["merge"]


@pytest.mark.parametrize("name", members("predictor"))
def test_every_predictor_is_under_its_own_name(name):
    assert hasattr(instantiate(together("predictor").predictor[name], _convert_="all"), "fit")


DERIVED = [(group, name) for group, sets in derived_sets().items() for name in sets]


@pytest.mark.parametrize(("group", "name"), DERIVED)
def test_a_derived_set_keeps_the_published_order_and_adds_what_is_new(group, name):
    # A set that came later has no published members.
    published, found = PUBLISHED["sets"][group].get(name, []), derived_sets()[group][name]
    known = {*PUBLISHED["options"][group]}
    assert [member for member in found if member in known] == published
    new = [member for member in found if member not in known]
    assert found == published + sorted(new)
    assert set(new) <= set(members(group)) - known
    # No file shadows it, and Hydra composes exactly these members, each under its own name.
    assert not (CONF / group / f"{name}.yaml").exists()
    assert list(composed("analyze", f"{group}={name}", SMALL)[group]) == found


@pytest.mark.parametrize("group", ["merge", "metric", "predictor"])
def test_every_member_is_in_the_sets_it_belongs_to(group):
    sets = derived_sets()[group]
    everything = [*sets["all"], *sets.get("shared", [])]
    assert sorted(everything) == members(group)


def test_fixed_sets_are_the_published_ones():
    for group, name in (("metric", "paper"), ("metric", "minimal"), ("merge", "paper")):
        assert list(composed("analyze", f"{group}={name}", SMALL)[group]) == PUBLISHED["sets"][group][name]


def test_the_metric_sets_have_their_sizes():
    sets = derived_sets()["metric"]
    assert len(composed("analyze", "metric=paper", SMALL).metric) == 28
    assert len(composed("analyze", "metric=minimal", SMALL).metric) == 25
    both = [*sets["all"], *sets["shared"]]
    assert list(composed("analyze", "metric=[all,shared]", SMALL).metric) == both
    bare = ["suite=checkpoints", *NEEDED["checkpoints"]]
    assert list(composed("analyze", *bare).metric) == sets["weights"]
    more = [*sets["weights"], "sign_conflict"]
    assert list(composed("analyze", *bare, "metric=[weights,sign_conflict]").metric) == more


def test_members_combine_and_their_options_can_be_set():
    cfg = composed(
        "analyze",
        "merge=[ties,ta]",
        "merge.ties.scope=tensor",
        "metric=[stable_rank,subspace_overlap]",
        SMALL,
    )
    assert list(cfg.merge) == ["ties", "ta"]
    assert cfg.merge.ties.scope == "tensor"
    assert list(cfg.metric) == ["stable_rank", "subspace_overlap"]


PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "comet": "comet_ml", "litlogger": "litlogger"}


@pytest.mark.parametrize("script", ["train", "analyze"])
@pytest.mark.parametrize("name", [name for name in members("logger") if name not in ("none", "many")])
def test_every_logger_can_be_instantiated_without_an_account_or_a_prompt(name, script, tmp_path, monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    cfg = without_runtime(composed(script, f"logger={name}", f"paths.root={tmp_path}"))
    assert list(cfg.logger) == [name]
    node = OmegaConf.to_container(cfg, resolve=True)["logger"][name]
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    texts = {
        key: value.replace("RUN_FOLDER", str(tmp_path))
        for key, value in node.items()
        if isinstance(value, str)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*offline.*")
        logger = instantiate({**node, **texts}, _convert_="all")
    assert hasattr(logger, "log_metrics")


def test_many_loggers_are_four_with_settings_of_their_own():
    assert list(composed("train", "logger=many").logger) == ["csv", "tensorboard", "wandb", "mlflow"]
    assert list(composed("analyze", "logger=[mlflow,csv]").logger) == ["mlflow", "csv"]


@pytest.mark.parametrize(
    ("name", "strength", "variant", "folder"),
    [
        ("grad_magnitude", 1, None, "grad_magnitude-1"),
        ("grad_magnitude", 1.0, None, "grad_magnitude-1"),
        ("grad_magnitude", "1e0", None, "grad_magnitude-1"),
        ("grad_magnitude", 0.12345678, None, "grad_magnitude-0.12345678"),
        ("grad_magnitude", 0.12345679, None, "grad_magnitude-0.12345679"),
        ("l2_to_init", 0.0, None, "none-0"),
        ("none", 0, "slow", "none-0+slow"),
    ],
)
def test_one_training_has_one_folder(name, strength, variant, folder):
    assert naming.penalty_folder(name, strength, variant) == folder


def test_settings_are_what_a_checkpoint_depends_on():
    def hashed(*overrides: str) -> dict:
        return record.settings(composed("train", *overrides))

    plain = hashed("task=digits")
    assert hashed("task=digits", "reg=l2_to_init", "reg.lambda=0") == plain, (
        "λ = 0 is plain, whatever the penalty"
    )
    assert hashed("task=digits", "task.expected_accuracy=0.5") == plain
    for other in (
        "seed=1",
        "training.weight_decay=0.2",
        "reg.lambda=1",
        "task.source.train=100",
        "trainer=gpu",
    ):
        assert hashed("task=digits", other) != plain
    assert digest(hashed("reg.lambda=1", "training.weight_decay=0")) == digest(
        hashed("reg.lambda=1.0", "training.weight_decay=0.0")
    )
    assert hashed("task=digits", "trainer=cpu", "trainer.log_every_n_steps=3") == plain, (
        "where it runs changes nothing"
    )
    assert hashed("task=digits", "trainer=smoke") != plain, "two batches are no training"
    with pytest.raises(UserError, match=r"does not support reg\.lambda=1"):
        hashed("reg=none", "reg.lambda=1")
    assert hashed("task=digits", "reg.lambda=1", "reg.penalty.estimator=exact") != hashed(
        "task=digits", "reg.lambda=1"
    )


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("m", "none", 0, 0, None, "outputs"), "python train.py -m model=m"),
        (("m", "grad_magnitude", 0.0, 0, None, "outputs"), "python train.py -m model=m"),
        (
            ("m", "grad_magnitude", 1.0, 2, "slow", "there"),
            "python train.py -m model=m reg=grad_magnitude reg.lambda=1 seed=2 variant=slow paths.root=there",
        ),
    ],
)
def test_the_command_that_makes_missing_models(arguments, command):
    assert naming.train_command(*arguments) == command
