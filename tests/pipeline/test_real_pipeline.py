"""Real images through the whole pipeline: trained on from a copy, analysed, and decoded once."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TASKS = ("mnist", "pcam")


def write_copies(folder, damaged=None) -> None:
    """Save small datasets of these tasks' shapes: a class is a brightness."""
    datasets = pytest.importorskip("datasets")
    labels = {"mnist": datasets.ClassLabel(names=[str(n) for n in range(10)]), "pcam": datasets.Value("bool")}
    splits = {"mnist": ("train", "test"), "pcam": ("train", "valid", "test")}
    for number, task in enumerate(TASKS):
        generator = np.random.default_rng(number)
        tables = {}
        for split in splits[task]:
            classes = np.arange(60) % (10 if task == "mnist" else 2)
            shape = (60, 28, 28) if task == "mnist" else (60, 96, 96, 3)
            images = generator.integers(0, 40, shape) + 20 * classes.reshape(-1, *[1] * (len(shape) - 1))
            images = list(images.astype(np.uint8))
            if damaged == (task, split):
                images[7] = {"bytes": b"no image", "path": None}
            columns = {
                "image": images,
                "label": classes.astype(bool) if task == "pcam" else classes,
            }
            features = datasets.Features({"image": datasets.Image(), "label": labels[task]})
            tables[split] = datasets.Dataset.from_dict(columns, features=features)
        datasets.DatasetDict(tables).save_to_disk(folder / task)


def test_train_and_analyse_copies_of_real_datasets(smoke_root, command, tmp_path, monkeypatch):
    write_copies(tmp_path / "data", damaged=("pcam", "test"))
    root = tmp_path / "outputs"
    shutil.copytree(smoke_root / "checkpoints/clip_mini/base", root / "checkpoints/clip_mini/base")
    where = ("model=clip_mini", f"paths.root={root}", "logger=csv")
    one = ("task.source=disk", f"task.path={tmp_path / 'data/mnist'}")
    few = ("training.epochs=1", "progress=null")
    # Run folders of their own: the default one is named by the second.
    ended = command("train", "task=mnist", *one, *where, *few, f"hydra.run.dir={tmp_path / 'first'}")
    assert ended.code == 0, ended.output
    copies = ("paths.source=disk", f"paths.data={tmp_path / 'data'}")
    ended = command(
        "train",
        "task=pcam",
        *copies,
        *where,
        *few,
        "task.dataset.max_corrupt=0.02",
        f"hydra.run.dir={tmp_path / 'second'}",
    )
    assert ended.code == 0, ended.output
    left_out = (
        "pcam, test: 1 images of the test split cannot be decoded and are left out: row 7 of split 'test'"
    )
    assert left_out in ended.output
    folder = root / "checkpoints/clip_mini/none-0/seed-0"
    cards = {task: json.loads((folder / task / "card.json").read_text()) for task in TASKS}
    # One image of each of ten classes is held out, where a tenth of sixty would be six.
    assert cards["mnist"]["images"]["train"]["count"] == 50
    counts = {split: one["count"] for split, one in cards["pcam"]["images"].items()}
    assert counts == {"train": 60, "validation": 60, "test": 59}
    assert cards["pcam"]["left_out"][0].startswith(left_out)
    assert "left_out" not in cards["mnist"]
    assert cards["mnist"]["expected_accuracy"] == 0.997
    # Prepared once: what fine-tuning decoded, the analysis finds.
    monkeypatch.setattr(
        "mergeability.data.real.ImageSource.stream", lambda *_: pytest.fail("images were decoded again")
    )
    fourteen = (Path(__file__).parent.parent.parent / "conf/suite/n14.yaml").read_text()
    others = [task for task in re.findall(r"@tasks\.(\w+)", fourteen) if task not in TASKS]
    assert len(others) == 12
    suite = (
        "suite=n14",
        *(f"~suite.tasks.{task}" for task in others),
        "suite.tasks.pcam.dataset.max_corrupt=0.02",
    )
    small = (
        "metric=task_vector_cosine_similarity",
        "merge=average",
        "predictor=none",
        "profile.samples=5",
    )
    ended = command(
        "analyze", *suite, *copies, *where, *small, "device=cpu", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert ended.code == 0, ended.output
    pairs = pd.read_csv(tmp_path / "run/pairs.csv")
    assert pairs[["task_a", "task_b"]].to_numpy().tolist() == [["mnist", "pcam"]]
    assert pairs["acc_average"].between(0, 1).all()
    assert left_out in ended.output
    assert left_out in html.unescape((tmp_path / "run/report.html").read_text())


def test_a_bad_copy_stops_the_training_with_one_sentence(smoke_root, command, tmp_path):
    write_copies(tmp_path / "data")
    root = tmp_path / "outputs"
    shutil.copytree(smoke_root / "checkpoints/clip_mini/base", root / "checkpoints/clip_mini/base")
    wrong = ("task=mnist", "task.source=disk", f"task.path={tmp_path / 'data/pcam'}", "progress=null")
    ended = command(
        "train", *wrong, "model=clip_mini", f"paths.root={root}", "logger=csv", "task.dataset.label=lable"
    )
    assert ended.code == 1
    assert "expected the label column 'lable'" in ended.output
    assert "Traceback" not in ended.output
