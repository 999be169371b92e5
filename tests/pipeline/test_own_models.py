"""Models of one's own: from files and folders of unlabelled images to a verdict, in the words of the command line."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from mergeability.data.image_cache import prepared
from mergeability.data.unlabelled import draw_images
from mergeability.errors import UserError
from mergeability.models.preprocessing import check_preprocessing
from mergeability.store import Store

CONF = Path(__file__).parents[2] / "conf"
NAMES = ("digits", "shapes", "letters")


@pytest.fixture(scope="module")
def suite():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("analyze", ["suite=smoke", "model=clip_mini"]).suite, _convert_="all")


@pytest.fixture(scope="module")
def place(smoke_root, suite, tmp_path_factory):
    """A folder as a practitioner has it: a base, three models, their images, and a description."""
    folder = tmp_path_factory.mktemp("own")
    made = smoke_root / "checkpoints/clip_mini"
    shutil.copy(made / "base/model.safetensors", folder / "base.safetensors")
    models = {}
    for name in NAMES:
        shutil.copy(made / f"none-0/seed-0/{name}/model.safetensors", folder / f"{name}.safetensors")
        shutil.copy(made / f"none-0/seed-0/{name}/head.safetensors", folder / f"{name}_head.safetensors")
        task = suite.tasks[name]
        images = prepared(task, "validation", suite.model.resize, 32, Store(None)).images
        for index, pixels in enumerate(images):
            (folder / "photos" / name / str(index % 2)).mkdir(parents=True, exist_ok=True)
            target = folder / "photos" / name / str(index % 2) / f"{index}.png"
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(target)
        models[name] = {
            "weights": f"{name}.safetensors",
            "images": f"photos/{name}",
            "classes": list(task.class_names),
            "templates": list(task.templates),
        }
    describe(folder / "mine.yaml", {name: models[name] for name in NAMES[:2]})
    return folder


def describe(path, models, **more):
    path.write_text(yaml.safe_dump({"base": "base.safetensors", "models": models, **more}, sort_keys=False))


def models_of(place):
    return yaml.safe_load((place / "mine.yaml").read_text())["models"]


@pytest.fixture
def analyse(command, place, tmp_path):
    def run(*arguments, file="mine.yaml"):
        ended = command(
            "analyze", "suite=models", "model=clip_mini", f"suite.models={place / file}", "merge=[average,ties]",
            f"paths.root={tmp_path}", f"paths.store={place}/store", "logger=csv", f"hydra.run.dir={tmp_path}/out",
            "device=cpu", *arguments,
        )  # fmt: skip
        return ended, tmp_path / "out"

    return run


def features(suite, state, images):
    clip = suite.model.architecture_only()
    clip.visual.load_state_dict(
        {name.removeprefix("visual."): value.float() for name, value in state.items()}
    )
    with torch.no_grad():
        return torch.nn.functional.normalize(clip.visual(suite.model.preprocess(images)), dim=-1).double()


def test_functional_metrics_and_probes_are_those_of_the_definitions(analyse, place, suite):
    ended, folder = analyse("alpha=1.0")
    assert ended.code == 0, ended.output
    row = pd.read_csv(folder / "pairs.csv").iloc[0]
    whole = safetensors.torch.load_file(place / "base.safetensors")
    base = {name: value for name, value in whole.items() if name.startswith("visual.")}
    own = {name: safetensors.torch.load_file(place / f"{name}.safetensors") for name in NAMES[:2]}
    merged = {key: (own["digits"][key].double() + own["shapes"][key].double()) / 2 for key in base}
    agreements, overlaps = [], []
    for name in NAMES[:2]:
        images = prepared(suite.tasks[name], "validation", suite.model.resize, 32, Store(None)).images
        head = safetensors.torch.load_file(place / f"{name}_head.safetensors")["head"].double()
        logits = {
            who: features(suite, state, images) @ head.T
            for who, state in (("base", base), ("own", own[name]), ("merged", merged))
        }
        agreements.append((logits["base"].argmax(1) == logits["own"].argmax(1)).double().mean().item())
        both = torch.minimum(logits["merged"].softmax(1), logits["own"].softmax(1))
        overlaps.append(both.sum(1).mean().item())
    assert row["base_agreement"] == pytest.approx(np.mean(agreements))
    assert row["probe_overlap_average"] == pytest.approx(np.mean(overlaps), abs=1e-5)
    assert not [column for column in row.index if "acc_" in column], "nothing was measured with labels"
    known = pd.read_csv(folder / "models.csv", index_col="task")
    assert known["base_agreement"].tolist() == pytest.approx(agreements)
    # 32 images where 64 are asked for.
    assert known["unlabelled_images"].tolist() == [32, 32]
    page = (folder / "report.html").read_text()
    assert "&#39;digits&#39; has only 32 unlabelled images instead of 64; all of them are used." in page


def test_the_verdict_comes_first_and_reads_the_probes(analyse):
    ended, folder = analyse()
    text = (folder / "verdict.txt").read_text()
    row = pd.read_csv(folder / "pairs.csv").iloc[0]
    best = max(("average", "ties"), key=lambda name: row[f"probe_overlap_{name}"])
    assert text.startswith("Merging digits + shapes\n\n")
    assert f"Merge by {best}: expect {row[f'probe_overlap_{best}']:.1%} of the fine-tuned accuracy" in text
    assert "The base agrees with digits's model on" in text
    page = (folder / "report.html").read_text()
    assert "How good are the merges, according to unlabelled images?" in page
    assert "were probed on unlabelled images; none was evaluated with labels" in page
    assert "No merge was evaluated" not in page, "it would contradict the verdict"
    assert " ".join(text.split()[:8]) in " ".join(ended.output.split())


def test_a_saved_head_stands_in_for_class_names_and_a_second_run_computes_nothing(analyse, place, tmp_path):
    first, folder = analyse()
    assert first.code == 0, first.output
    models = models_of(place)
    for name, one in models.items():
        one.pop("classes"), one.pop("templates")
        one["head"] = f"{name}_head.safetensors"
    describe(place / "heads.yaml", models)
    before = pd.read_csv(folder / "pairs.csv")
    second, folder = analyse(file="heads.yaml")
    assert second.code == 0, second.output
    pd.testing.assert_frame_equal(pd.read_csv(folder / "pairs.csv"), before)
    assert json.loads((folder / "run.json").read_text())["computed"] == {}


def test_the_scale_is_chosen_without_labels_and_a_set_of_three_is_probed(analyse, place):
    models = models_of(place)
    models["letters"] = {
        "weights": "letters.safetensors",
        "images": "photos/letters",
        "head": "letters_head.safetensors",
    }
    describe(place / "three.yaml", models)
    ended, folder = analyse("alpha=unlabelled", "alpha_grid=[0.3,1.0]", "arity=all", file="three.yaml")
    assert ended.code == 0, ended.output
    sets = pd.read_csv(folder / "sets.csv")
    assert sets["tasks"].tolist() == ["digits+shapes+letters"]
    assert sets["probe_overlap_ties"].notna().all()
    assert sets["ensemble_overlap"].notna().all()
    curves = pd.read_csv(folder / "alpha_curves.csv")
    assert set(curves["alpha"]) == {0.3, 1.0}
    assert (folder / "verdict.txt").read_text().startswith("Merging digits + shapes + letters")


def test_images_and_names_that_are_not_as_they_should_be_are_named(analyse, place):
    models = models_of(place)
    shutil.copytree(place / "photos/digits", place / "mixed")
    (place / "mixed/0/._0.png").write_bytes(b"x")
    (place / "mixed/0/a.xyz").write_bytes(b"x")
    (place / "mixed/0/gone.png").symlink_to("nowhere.png")
    Image.fromarray(np.full((32, 32), 65535, dtype=np.uint16)).save(place / "mixed/deep.png")
    (place / "classes.txt").write_text("\ufeff" + "\n".join(models["digits"]["classes"]), encoding="utf-8")
    models["digits"] |= {"images": "mixed", "classes": "classes.txt"}
    describe(place / "odd.yaml", {"Café ": models["digits"], "cafe\u0301": models["shapes"]})
    ended, folder = analyse("merge=none", "metric=[base_agreement]", file="odd.yaml")
    assert ended.code == 0, ended.output
    assert pd.read_csv(folder / "pairs.csv")[["task_a", "task_b"]].to_numpy().tolist() == [["Café", "café"]]
    page = html.unescape((folder / "report.html").read_text())
    for sentence in (
        "The models 'Café' and 'café' differ only in case or white space; they are treated as different.",
        "'Café': files ending in .xyz are left out: 1 (0/a.xyz); hidden files and folders are left out: 1 (0/._0.png).",
        "'Café': broken links to images are left out: 1 (0/gone.png).",
        "'Café': images with more than eight bits a channel, scaled from 0..65535 to 0..255: 1 (deep.png).",
    ):
        assert sentence in page
        assert ended.output.count(sentence) == 1


BAD = [
    (lambda m: m.update({" digits": m["shapes"]}), (), "got 'digits' twice, in spellings that differ only in white space or in the Unicode form of accents"),
    (lambda m: m["digits"].update(classes="latin.txt"), (), "byte 3 is invalid. Save the file as UTF-8."),
    (lambda m: None, ("arity=[]",), "or a list of such values, got an empty list"),
    (lambda m: None, ("suite.models={a: {weights: x}, a: {weights: y}}",), "suite.models has 'a' twice"),
    (lambda m: m["digits"].update(images="nowhere"), (), "No folder of images at"),
    (lambda m: m["digits"].update(images="empty"), (), "There are no images in"),
    (lambda m: m["digits"].update(images="broken"), (), "None of the 9 image files"),
    (lambda m: m["digits"].update(images="few"), (), "Expected at least 8 readable images of each task, got fewer for digits (7)"),
    (lambda m: m["digits"].update(weights="shapes_head.safetensors"), (), "Give state dicts of one architecture"),
    (lambda m: m["digits"].update(head="shapes_head.safetensors"), (), "has 8 classes, but 10 class names"),
    (lambda m: m["digits"].update(classes="digits"), (), "no file of class names for 'digits' at digits"),
    (lambda m: m["digits"].update(classes=["one", "one"]), (), "two different class names for 'digits', got one twice"),
    (lambda m: m["digits"].update(templates=["a photo"]), (), "lacks the placeholder {} for the class name"),
    (lambda m: m["digits"].update(labels="labels.csv"), (), "unknown labels"),
    (lambda m: m["digits"].pop("images"), (), "contains no images"),
    (lambda m: m["digits"].pop("classes"), (), "suite.models.digits requires a head"),
    (lambda m: m.pop("digits"), (), "two or more models"),
    (lambda m: None, ("suite.models=nowhere.yaml",), "There is no file nowhere.yaml."),
    (lambda m: None, ("profile.unlabelled=7",), "a number of images that is at least 8, got 7"),
    (lambda m: None, ("alpha=tuned",), "alpha=tuned requires labelled validation images"),
    (lambda m: None, ("merge=[fisher]",), "fisher requires labelled calibration images"),
    (lambda m: None, ("metric=[encoder_gradient_dot_product]",), "require labelled images"),
    (lambda m: None, ("probe=null",), "Set probe=64 or save=true"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "arguments", "sentence"), BAD, ids=[case[2][:40] for case in BAD])
def test_what_does_not_fit_is_one_sentence(analyse, place, change, arguments, sentence):
    for name in ("empty", "broken", "few"):
        (place / name).mkdir(exist_ok=True)
    for index in range(9):
        (place / "broken" / f"{index}.png").write_bytes(b"no image")
        if index < 7:
            Image.new("RGB", (32, 32), (index, 0, 0)).save(place / "few" / f"{index}.png")
    (place / "latin.txt").write_bytes("caf\xe9\nbar".encode("latin-1"))
    models = models_of(place)
    change(models)
    describe(place / "bad.yaml", models)
    ended, _ = analyse(*arguments, file="bad.yaml")
    assert ended.code == 1
    assert sentence in " ".join(ended.output.split())
    assert "Traceback" not in ended.output


def test_a_key_typed_twice_in_the_file_is_refused(analyse, place):
    text = (place / "mine.yaml").read_text()
    (place / "twice.yaml").write_text(text + text.partition("models:\n")[2])
    ended, _ = analyse(file="twice.yaml")
    assert ended.code == 1
    assert "digits, shapes is there twice" in " ".join(ended.output.split())


def test_images_of_another_task_are_reported(analyse, place):
    models = models_of(place)
    (place / "noise").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(64):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "noise" / f"{index}.png")
    models["digits"]["images"] = "noise"
    describe(place / "noise.yaml", models)
    ended, folder = analyse("merge=none", file="noise.yaml")
    assert ended.code == 0, ended.output
    # Whether noise counts as chance depends on how often both models repeat one class; it is said in both places or in none.
    said = re.findall(r"agrees with the model of '(\w+)' on", (folder / "verdict.txt").read_text())
    page = html.unescape((folder / "report.html").read_text())
    assert set(said) == set(re.findall(r"agrees with the model of '(\w+)' on", page))
    assert len(said) == len(set(said))
    assert set(said) <= {"digits", "shapes"}


def test_all_metrics_are_those_that_need_no_labels(analyse):
    ended, folder = analyse("metric=all", "merge=none")
    assert ended.code == 0, ended.output
    columns = pd.read_csv(folder / "pairs.csv").columns
    assert {"activation_linear_cka", "ensemble_overlap", "subspace_overlap"} <= set(columns)
    assert "encoder_gradient_dot_product" not in columns
    assert (
        "Left out, since they need labels: encoder_gradient_cosine_similarity"
        in (folder / "report.html").read_text()
    )


def test_the_draw_depends_on_names_and_seed_and_replaces_what_cannot_be_read(tmp_path):
    for index in range(20):
        Image.new("RGB", (8, 8), (index * 10, 0, 0)).save(tmp_path / f"{index:02d}.png")
    (tmp_path / "notes.txt").write_text("")
    keep = lambda pixels: pixels  # noqa: E731
    first = draw_images(tmp_path, 12, "a", 0, keep)
    reds = [int(image[0, 0, 0]) for image in first.images]
    assert first.found == 20
    assert len(set(reds)) == 12
    fewer = [int(image[0, 0, 0]) for image in draw_images(tmp_path, 5, "a", 0, keep).images]
    assert fewer == reds[:5], "fewer are the first of the same draw"
    assert [int(i[0, 0, 0]) for i in draw_images(tmp_path, 12, "a", 1, keep).images] != reds
    broken = tmp_path / f"{reds[2] // 10:02d}.png"
    broken.write_bytes(b"no image")
    again = draw_images(tmp_path, 12, "a", 0, keep)
    assert again.unreadable == (broken.name,)
    assert [int(i[0, 0, 0]) for i in again.images][:11] == reds[:2] + reds[3:]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "model.mean="),
        ({"image_std": [0.5, 0.5, 0.5]}, "model.std="),
        ({"size": {"shortest_edge": 224}}, "images of 224 pixels"),
        ({"crop_size": 384}, "images of 384 pixels"),
        ([], "does not describe preprocessing"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_preprocessor_that_disagrees_with_the_model_is_refused(suite, tmp_path, content, sentence):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        check_preprocessing(tmp_path / "model.safetensors", suite.model)


def test_a_preprocessor_that_agrees_or_none_is_taken(suite, tmp_path):
    check_preprocessing(tmp_path / "model.safetensors", suite.model)
    described = {
        "image_mean": list(suite.model.mean),
        "image_std": list(suite.model.std),
        "size": {"height": 32},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    check_preprocessing(tmp_path / "model.safetensors", suite.model)
