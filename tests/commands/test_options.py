"""Options as they are typed: every documented value works, and what does not is refused by name, with what does."""

import ast
import errno
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mergeability.commands.settings import check_settings
from mergeability.commands.sweep import user_error
from mergeability.commands.wording import flags_first, parse_failure, quoted
from mergeability.errors import UserError
from mergeability.members import folder
from mergeability.verbs.annotations import RefusedError, foreign_signature, signature, take, words

CONF = folder("")
ANALYZE = ("suite=smoke", "model=clip_mini", "logger=none", "metric=all", "merge=all")
TRAIN = ("task=digits", "model=clip_mini", "logger=none", "reg=grad_magnitude")
# Setting → its documented values as typed, with what they stand for; and the node that takes it.
DOCUMENTED = {
    ("analyze", "analysis.merging"): {
        "arity": {"2": 2, "5": 5, "all": "all", "[2,all]": [2, "all"]},
        "sets": {"null": None, "20": 20},
        "evaluate": {"null": None, "60": 60},
        "alpha": {"null": None, "0.5": 0.5, "1": 1, "tuned": "tuned", "unlabelled": "unlabelled", "both": "both",
                  "own": "own", "[own,tuned,unlabelled]": ["own", "tuned", "unlabelled"]},
        "probe": {"null": None, "16": 16, "64": 64},
        "test_images": {"null": None, "100": 100},
        "save": {"true": True, "false": False},
        "export": {"hf": "hf", "null": None},
        "dtype": {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "null": None},
        "pairs": {"null": None, "[[digits, letters], [digits, shapes]]": [["digits", "letters"], ["digits", "shapes"]]},
    },
    ("analyze", "prediction"): {
        "prediction.protocols": {"[loto]": ["loto"], "[l2to]": ["l2to"], "[halves]": ["halves"]},
        "prediction.targets": {"[acc]": ["acc"], "[norm_acc]": ["norm_acc"]},
        "prediction.permutations": {"0": 0},
        "prediction.seeds": {"0": 0},
        "prediction.level": {"0.5": 0.5},
        "prediction.ablation": {"false": False},
    },
    ("analyze", "profile"): {
        "profile.unlabelled_from": {"validation": "validation", "train": "train"},
        "profile.layer": {"null": None, "visual.ln_post": "visual.ln_post"},
        "profile.pool": {"null": None, "[digits,letters]": ["digits", "letters"]},
        "profile.split_qkv": {"true": True},
        "profile.matricize": {"conv": "conv", "null": None},
        "profile.memory_budget": {"0.5": 0.5},
    },
    ("analyze", "merge.ties"): {
        "merge.ties.scope": {"global": "global", "tensor": "tensor"},
        "merge.ties.agg": {"mean": "mean", "sum": "sum"},
        "merge.ties.alpha": {"1": 1, "0.3": 0.3},
    },
    ("analyze", "merge.iso_c"): {
        "merge.iso_c.truncate": {"true": True},
        "merge.iso_c.alpha": {"published": "published", "1": 1},
    },
    ("analyze", None): {
        "on_error": {"raise": "raise", "nan": "nan", "NaN": "nan"},
        "device": {"auto": "auto", "cpu": "cpu", "cuda": "cuda"},
        "objectives": {"null": None, "[acc,norm_acc,finetuned_accuracy]": ["acc", "norm_acc", "finetuned_accuracy"]},
        "variant": {"null": None, "mine": "mine", "2": "2"},
        "fitted": {"null": None, "outputs/demo": "outputs/demo"},
        "train.missing": {"true": True},
        "train.settings": {'["training.epochs=1", "trainer=gpu"]': ["training.epochs=1", "trainer=gpu"]},
        "metric.right_subspace_overlap_top_k.end": {"top": "top", "bottom": "bottom"},
        "metric.subspace_overlap.k": {"5": 5},
        "predictor.dyadic.strengths": {"[10, .inf]": [10, ".inf"], "[10, inf]": [10, float("inf")]},
        "predictor.additive.strength": {"null": None, "0.1": 0.1},
    },
    ("train", "training"): {
        "training.optimizer": {"adamw": "adamw", "sgd": "sgd"},
        "training.compile": {"true": True},
        "training.warmup_steps": {"0": 0},
    },
    ("train", "reg.penalty"): {
        "reg.penalty.estimator": {"finite_difference": "finite_difference", "exact": "exact"},
        "reg.penalty.radius": {"null": None, "0.05": 0.05},
        "reg.lambda": {"0": 0, "1e-4": 1e-4, "0.1": 0.1},
    },
    ("train", None): {
        "doctor": {"true": True},
        "overwrite": {"true": True},
        "trainer.devices": {"1": 1, "auto": "auto", "[0]": [0]},
        "trainer.precision": {"32-true": "32-true", "bf16-mixed": "bf16-mixed", "16": 16},
        "trainer.accelerator": {"cpu": "cpu", "gpu": "gpu", "auto": "auto"},
        "model.pretrained": {"null": None},
        "paths.data": {"null": None, "/data": "/data"},
        "progress": {"null": None},
    },
}  # fmt: skip
TYPED = [
    (script, node, setting, value, meant)
    for (script, node), settings in DOCUMENTED.items()
    for setting, values in settings.items()
    for value, meant in values.items()
]


def composed(script, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, [*(ANALYZE if script == "analyze" else TRAIN), *overrides])


@pytest.mark.parametrize(
    ("script", "node", "setting", "value", "meant"), TYPED, ids=lambda one: str(one)[:30]
)
def test_every_documented_value_can_be_typed(script, node, setting, value, meant):
    if meant == [10, ".inf"]:
        pytest.skip("YAML's word, which a command line has as inf")
    cfg = composed(script, f"{setting}={value}")
    check_settings(cfg)
    found = OmegaConf.select(cfg, setting)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == meant
    assert type(found) is type(meant) or isinstance(meant, list)
    if node is not None:
        instantiate(OmegaConf.select(cfg, node), _convert_="all")


def literals(annotation):
    for one in ast.walk(annotation):
        if isinstance(one, ast.Subscript) and ast.unparse(one.value) == "Literal":
            options = ast.literal_eval(one.slice)
            yield from options if isinstance(options, tuple) else (options,)


def test_every_value_that_the_code_names_is_documented_here():
    cfg = composed("analyze")
    targets = {
        "profile": cfg.profile, "analysis.merging": cfg.analysis.merging, "prediction": cfg.prediction,
        "training": composed("train").training, "analysis": cfg.analysis,
    }  # fmt: skip
    listed = {
        (setting.rpartition(".")[2], meant) for _, _, setting, _, meant in TYPED if isinstance(meant, str)
    }
    for node in targets.values():
        for name, annotation in signature(node._target_).arguments.items():
            for value in literals(annotation):
                assert (name, value) in listed or name == "rows", (name, value)


def test_a_word_that_reads_as_a_number_is_taken_by_the_command(command, tmp_path):
    where = (f"paths.root={tmp_path}", f"hydra.run.dir={tmp_path}/run", "logger=none")
    ended = command("analyze", "suite=table", "suite.table=gone.csv", "on_error=nan", *where)
    assert ended.output.strip().splitlines()[-1].startswith("Error: No table at gone.csv."), ended.output


REFUSED = {
    "training.epochs=x": "Expected training.epochs to be a whole number of at least 1, got 'x'.",
    "task.epochs=x": "Expected task.epochs to be a whole number of at least 1, got 'x'.",
    "training.epochs=2.0": "got 2.0",
    "training.learning_rate=nan": "Expected training.learning_rate to be a finite number above 0, got nan.",
    "training.optimizer=adam": "Expected training.optimizer to be adamw or sgd, got 'adam'.",
    "training.momentum=2": "Expected training.momentum to be a number from 0 to 1, got 2.",
    "+training.foo=1": "training does not have the setting 'foo'.",
    "+training.epoch=1": "Did you mean 'epochs'?",
    "seed=-1": "Expected seed to be a whole number",
    "variant=../x": "Expected variant to be the name of one file or folder",
    "task.name=../../x": "Expected task.name to be the name of one file or folder",
    'model.name="a/b"': "Expected model.name to be the name",
    "variant=true": """Quote it: 'variant="true"'.""",
    "doctor=1": "Expected doctor to be true or false, got 1.",
    "trainer.log_every_n_steps=0": "Expected trainer.log_every_n_steps",
    "+trainer.max_step=3": "Did you mean 'max_steps'",
    "trainer=null": "trainer",
    "model.architecture.vision_cfg.width=0": "Expected model.architecture.vision_cfg.width",
    "model.architecture.vision_cfg.patch_size=[]": "got []",
    "reg.lambda=abc": "Expected reg.lambda to be a finite number of at least 0, got 'abc'.",
    "paths.root=[1]": "Expected paths.root to be text, got [1].",
    "trening.epochs=1": "Did you mean 'training.epochs'",
    "task=digit": "Did you mean 'digits'",
    "tusk=digits": "Did you mean 'task'",
    "task=": "task",
    "reg.lambda=0,1": "add -m for that",
    "paths.root=run(1)": """Quote the value: 'paths.root="run(1)"'.""",
}


@pytest.mark.parametrize("override", REFUSED)
def test_wrong_values_are_refused_in_a_sentence_that_names_the_setting(command, tmp_path, override):
    ended = command("train", *TRAIN, f"paths.runs={tmp_path}", override)
    assert ended.code == 1
    assert "Traceback" not in ended.output
    # A line about threads may come before.
    *before, sentence = ended.output.strip().splitlines()
    assert len(before) <= 1, ended.output
    assert sentence.startswith("Error: ")
    assert REFUSED[override] in ended.output, ended.output


@pytest.mark.parametrize("place", [0, 2, 3])
def test_the_flag_of_a_sweep_may_stand_anywhere(command, tmp_path, place):
    words = ["suite=table", "suite.table=gone.csv", f"paths.runs={tmp_path}", "seed=0,1"]
    ended = command("analyze", *words[:place], "-m", *words[place:])
    assert "2 of 2 jobs failed" in ended.output
    assert "unrecognized" not in ended.output


def test_flags_come_first_with_their_words():
    given = ["a=1", "--cfg", "job", "b=2", "--info", "c=3", "-m", "--config-name=x"]
    assert flags_first(given) == ["--cfg", "job", "--info=all", "-m", "--config-name=x", "a=1", "b=2", "c=3"]


HARD = [
    "epoch=1-step=10.ckpt", "模型/base", "run(1)/base", "my models/a.pt", "a,b.pt", "~/x", "a'b", 'a"b', "a\\", "C:\\x\\y",
    "${x", "a#b", "{x", "[1", "a:b=c", "50%", "x y(z)=ü,ö", "(", "a\\\"b", "*?", "née",
]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_the_quoted_form_is_read_as_the_text(text):
    shown = quoted(f"suite.base={text}")
    (word,) = shlex.split(shown)
    assert OverridesParser.create().parse_override(word).value() == text


@pytest.mark.parametrize("text", ["epoch=1-step=10.ckpt", "模型/base", "run(1)/base", "a=b"])
def test_the_parts_of_names_and_values_are_quoted_one_by_one(text):
    override = "suite.models={a: %s, b: plain.pt}" % text  # noqa: UP031
    assert "'suite.models={a: \"%s\", b: plain.pt}'" % text in parse_failure(override)  # noqa: UP031
    (word,) = shlex.split(quoted(override))
    assert OverridesParser.create().parse_override(word).value() == {"a": text, "b": "plain.pt"}


@pytest.mark.parametrize(
    ("annotation", "fits", "does_not"),
    [
        ("int", [1, -5], [True, 1.0, "1", None, [1]]),
        ("float | int", [1, 0.5], [True, float("nan"), float("inf"), "x"]),
        ("Sequence[Number]", [[1, float("inf")]], [[True], [float("nan")]]),
        ("Count | None", [1, None], [0, -1, 2**31, True]),
        ("str", ["a", ""], [True, 1.5, None, ["a"]]),
        ("Sequence[str]", [["a"], []], ["a", [None], {"a": 1}]),
        ("Mapping[str, float]", [{"a": 1}], [[1], {"a": "x"}]),
        ("Literal['nan', 'raise']", ["nan"], ["x", 1, None]),
        ("Optional[Union[int, Tuple[int, int]]]", [None, 3, [1, 2]], ["x", ["x"]]),
        ("Task", [{"_target_": "x"}], [5, "x", [1], {"x": 1}]),
        ("'int | None'", [1, None], ["x"]),
    ],
)
def test_annotations_are_read_as_python_has_them(annotation, fits, does_not):
    parsed = ast.parse(annotation, mode="eval").body
    for value in fits:
        assert take(parsed, value) == value
    for value in does_not:
        with pytest.raises(RefusedError):
            take(parsed, value)
    assert words(parsed)


def test_settings_of_other_packages_are_known_without_importing_them():
    assert "max_steps" in foreign_signature("lightning", "pytorch/trainer/trainer.py", "Trainer").arguments
    assert "patch_size" in foreign_signature("open_clip", "model.py", "CLIPVisionCfg").arguments


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_a_sentence_that_names_the_place(number):
    error = ValueError("wrapped")
    error.__cause__ = OSError(number, "the reason", "/the/place")
    told = str(user_error(error))
    assert told.startswith("Cannot use /the/place: the reason.")
    assert ("Free some space" in told) == (number == errno.ENOSPC)


def test_a_folder_that_cannot_be_made_is_named(command, tmp_path):
    (tmp_path / "file").touch()
    for place in (f"{tmp_path}/file/x", f"{tmp_path}/{'x' * 300}"):
        ended = command("analyze", "suite=table", "suite.table=t.csv", f"paths.root={place}")
        assert ended.code == 1
        assert ended.output.startswith(f"Error: Cannot make the folder {place[:150]}"), ended.output
        assert "Traceback" not in ended.output


def test_an_entry_of_names_and_values_is_named():
    cfg = composed("analyze")
    OmegaConf.update(cfg, "metric.stable_rank", 5, merge=False)
    with pytest.raises(
        UserError, match=r"Expected metric\.stable_rank to be a node with a _target_, got 5\."
    ):
        check_settings(cfg)


def test_other_mistakes_stay_defects():
    assert user_error(ValueError("a defect")) is None
    with pytest.raises(UserError, match="Expected on_error"):
        check_settings(composed("analyze", "on_error=no"))
