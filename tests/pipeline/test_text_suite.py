"""Text tasks from the command line: training, metrics, merges, functional metrics and prediction, as for images."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.trainers import WordLevelTrainer
from transformers import BertModel

from mergeability.data import TextCorpus
from mergeability.examples import tiny_own_models, tiny_text_model
from mergeability.metrics.catalogue import PAPER
from mergeability.models.text import mean_pooled_bert
from mergeability.weights import checkpoints

CONF = Path(__file__).parents[2] / "conf"
TASKS = ("brackets", "expressions", "negation", "sums")
OTHERS = ("topics", "languages", "display_names", "docstrings", "characters", "inference")


@pytest.fixture(scope="module")
def text_root(command, tmp_path_factory):
    """The models of four text tasks, fine-tuned from a BERT of one block that knows the words of their texts."""
    root = tmp_path_factory.mktemp("texts")
    write_bert(root / "bert")
    sizes = ("task.source.train=80", "task.source.validation=24", "task.source.test=40", "task.epochs=3")
    ended = command(
        "train", "-m", f"task={','.join(TASKS)}", *of_model(root), *sizes, "progress=null", "reg=none"
    )
    assert ended.code == 0, ended.output
    return root


def write_bert(folder):
    """Write the tiny BERT with another vocabulary."""
    tiny = tiny_text_model().folder
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    texts = [
        text
        for task in TASKS
        for text in TextCorpus(task, train=80, validation=24, test=40).load("train").texts
    ]
    # The classes need words of their own, because equal prototypes leave no gradient.
    texts += [(CONF / "task" / f"{task}.yaml").read_text() for task in TASKS]
    trainer = WordLevelTrainer(
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = json.loads((tiny / "config.json").read_text())
    configuration |= {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    torch.manual_seed(0)
    checkpoints.save(folder / "model.safetensors", mean_pooled_bert(configuration).state_dict())


def of_model(root):
    bert = root / "bert" if (root / "bert").is_dir() else tiny_text_model().folder
    tiny = ("model=minilm", f"model.pretrained={bert}", "model.sha256=null", "model.context_length=16")
    return (f"paths.root={root}", "logger=csv", *tiny, "model.learning_rate=0.01")


def suite(root):
    """Options of an analysis of the four tasks."""
    added = [f"+task@suite.tasks.{name}={name}" for name in ("brackets", "negation")]
    sizes = [
        f"suite.tasks.{name}.source.{split}={count}"
        for name in TASKS
        for split, count in (("train", 80), ("validation", 24), ("test", 40))
    ]
    return (
        "suite=text8",
        "reg=none",
        *added,
        *(f"~suite.tasks.{name}" for name in OTHERS),
        *sizes,
        *of_model(root),
    )


def test_a_text_model_is_one_that_transformers_opens(text_root, tmp_path):
    folder = text_root / "checkpoints/minilm/none-0/seed-0/sums"
    card = json.loads((folder / "card.json").read_text())
    assert set(card["accuracy"]) == {"train", "validation", "test"}
    names = set(checkpoints.load(folder / "model.safetensors"))
    (folder / "config.json").write_text((text_root / "bert/config.json").read_text())
    _, loaded = BertModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    (folder / "config.json").unlink()
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert "encoder.layer.0.attention.self.query.weight" in names


def test_texts_have_all_metrics_merges_and_functional_evidence(command, text_root, tmp_path):
    run = tmp_path / "run"
    ended = command(
        "analyze",
        *suite(text_root),
        "metric=[paper,functional]",
        "merge=[average,ties,fisher,regmean]",
        "predictor=ridge",
        "prediction.permutations=0",
        "prediction.ablation=false",
        "probe=8",
        f"hydra.run.dir={run}",
    )
    assert ended.code == 0, ended.output
    pairs, models = pd.read_csv(run / "pairs.csv"), pd.read_csv(run / "models.csv")
    assert len(pairs) == 6
    assert len(PAPER) == 28
    assert pairs[sorted(PAPER)].notna().all(axis=None)
    for method in ("average", "ties", "fisher", "regmean"):
        assert pairs[f"norm_acc_{method}"].between(0, 5).all()
    assert models["tfidf_accuracy"].between(0, 1).all()
    assert models["finetuned_accuracy"].between(0, 1).all()
    assert "logistic regression on TF-IDF" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("suite.pixel_baseline=true",), "needs images, but task 'expressions' consists of texts"),
        (("+task@suite.tasks.loops=loops",), "No checkpoint for 'loops'"),
    ],
)
def test_images_among_texts_are_one_sentence(command, text_root, tmp_path, changes, message):
    ended = command("analyze", *suite(text_root), "merge=none", f"hydra.run.dir={tmp_path}/run", *changes)
    assert ended.code == 1
    assert message in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("task=loops",), "Task 'loops' consists of images, but texts are expected"),
        (
            ("task=sums", "model.context_length=99"),
            "at most 16, the number of positions of the network, got 99",
        ),
    ],
)
def test_a_text_model_says_what_it_cannot_read(command, tmp_path, arguments, message):
    ended = command("train", *of_model(tmp_path), "progress=null", *arguments)
    assert ended.code == 1
    assert message in ended.output


def test_an_image_model_says_that_it_cannot_read_texts(command, smoke_root):
    ended = command(
        "train", "task=sums", "model=clip_mini", f"paths.root={smoke_root}", "logger=csv", "progress=null"
    )
    assert ended.code == 1
    assert "Task 'sums' consists of texts, but images are expected" in ended.output


def test_the_doctor_says_that_it_checks_images(command, tmp_path):
    ended = command("train", "task=sums", "doctor=true", *of_model(tmp_path))
    assert ended.code == 1
    assert "doctor=true checks images, but task 'sums' consists of texts" in ended.output


def test_files_of_models_are_those_of_images(command, tmp_path):
    base, models, images = tiny_own_models()
    ended = command("train", "experiment=import", f"source={models['greys']}", *of_model(tmp_path))
    assert ended.code == 1
    assert "Only image models can be imported" in ended.output
    given = ", ".join(
        f"{name}: {{weights: {path}, images: {images[name]}, classes: [dark, light]}}"
        for name, path in models.items()
    )
    run = f"hydra.run.dir={tmp_path}/run"
    ended = command(
        "analyze", "suite=models", f"suite.base={base}", f"suite.models={{{given}}}", run, *of_model(tmp_path)
    )
    assert ended.code == 1
    assert "Only image models can be given in suite.models" in ended.output
