"""Models from elsewhere: PyTorch files without unpickling, the hub's cache, and folders an analysis finds."""

import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.errors
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf
from PIL import Image

from mergeability.errors import UserError
from mergeability.models.clip import ClipModel
from mergeability.store import Store
from mergeability.weights import checkpoints, hub, hugging_face
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.torch_file import load_state_dict

REVISION = "0123456789abcdef0123456789abcdef01234567"
TASKS = ("digits", "letters")
MINI = Path(__file__).parents[2] / "conf/model/clip_mini.yaml"


# --- PyTorch's own files ---


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("holder", [None, "state_dict", "model_state_dict", "model"])
def test_a_state_dict_is_read_in_either_format_and_out_of_what_a_script_put_around_it(
    tmp_path, zipped, holder
):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}
    saved = state if holder is None else {holder: state, "epoch": 3}
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    found = load_state_dict(tmp_path / "m.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def pickled_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


def bomb(path):
    torch.save({"weight": torch.ones(2), "extra": Bomb()}, path)


def plain_bomb(path):
    path.write_bytes(pickle.dumps(Bomb()))


def program(path):
    # What torch.jit.save writes, which recent versions advise against: an archive with constants beside its code.
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/code/__torch__.py", b"")


def truncated(path):
    torch.save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-300])


def git_lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 598625673\n")


def not_by_name(path):
    torch.save([torch.ones(2)], path)


def more_than_tensors(path):
    torch.save({"weight": torch.ones(2), "optimizer": {"lr": 0.1}}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            pickled_module,
            r"in addition to tensors, other pickled objects.*rejected .*torch.nn.modules.linear.Linear.*save_file",
        ),
        (bomb, "in addition to tensors, other pickled objects"),
        (plain_bomb, "not a complete PyTorch file.*another kind of pickle"),
        (program, "TorchScript archive, which contains a program and is never loaded"),
        (truncated, "not a complete PyTorch file"),
        (git_lfs_pointer, "not a complete PyTorch file.*a Git LFS pointer"),
        (lambda path: path.write_bytes(b""), "not a complete PyTorch file"),
        (not_by_name, "Expected a mapping of names to tensors .*got list"),
        (more_than_tensors, "1 of its entries are not: optimizer"),
        (lambda path: torch.save({}, path), "got nothing"),
        (lambda path: None, "No checkpoint at"),
    ],
)
def test_what_holds_more_than_tensors_is_refused_and_never_run(tmp_path, write, message):
    write(tmp_path / "m.bin")
    with pytest.raises(UserError, match=message) as raised:
        load_state_dict(tmp_path / "m.bin")
    assert "weights_only" not in str(raised.value), "nobody is told to load it in another way"


# --- the hub ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))

    def download(repository, file):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "downloaded", download)
    return folder


def publish(cache, repository, write):
    """Lay a repository into the cache as the hub's client does; write(snapshot folder)."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(REVISION)
    write(snapshot)
    return snapshot


def test_a_cached_model_needs_no_network_and_safetensors_come_first(cache, tmp_path):
    def write(folder):
        torch.save({"visual.a": torch.ones(2)}, folder / "pytorch_model.bin")

    binary = publish(cache, "somebody/ViT-B-16-SVHN", write) / "pytorch_model.bin"
    assert hub.find_weights("somebody/ViT-B-16-SVHN") == binary
    checkpoints.save(binary.parent / "model.safetensors", {"visual.a": torch.zeros(2)})
    assert hub.find_weights("somebody/ViT-B-16-SVHN") == binary.parent / "model.safetensors"
    assert hub.revision(binary) == REVISION
    assert hub.revision(tmp_path / "m.bin") is None


def test_without_network_or_copy_the_sentence_says_what_to_run(cache, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"Run `hf download somebody/svhn`.*HF_HOME.*the path of the downloaded file"
    ):
        hub.find_weights("somebody/svhn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    torch.save({"visual.a": torch.ones(2)}, tmp_path / "somebody/svhn")
    assert hub.find_weights("somebody/svhn").name == "svhn", "what is here is never looked for on the hub"
    for path in ("runs/a.safetensors", "/no/such/model", "model", "a/b/c", "./a/b"):
        with pytest.raises(UserError, match="No checkpoint at"):
            hub.find_weights(path)


def test_the_hub_is_asked_for_one_kind_of_file_after_the_other(cache, tmp_path, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append(file)
        if file != "pytorch_model.bin":
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return tmp_path / file

    monkeypatch.setattr(hub, "downloaded", download)
    assert hub.find_weights("somebody/svhn") == tmp_path / "pytorch_model.bin"
    assert asked == ["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin"]

    def nothing(repository, file):
        raise huggingface_hub.errors.EntryNotFoundError("404")

    monkeypatch.setattr(hub, "downloaded", nothing)
    with pytest.raises(UserError, match=r"contains none of model\.safetensors"):
        hub.find_weights("somebody/svhn")


def test_a_pytorch_file_is_converted_once_into_the_store(tmp_path, clip_state, monkeypatch):
    torch.save({f"model.{name}": value for name, value in clip_state.items()}, tmp_path / "m.bin")
    store = Store(tmp_path / "store")
    opened = hub.open_checkpoint(tmp_path / "m.bin", store)
    assert opened.path.is_relative_to(tmp_path / "store")
    assert all(torch.equal(opened.tensor(name), value) for name, value in clip_state.items())
    monkeypatch.setattr(hub, "load_state_dict", lambda path: pytest.fail("converted again"))
    assert hub.open_checkpoint(tmp_path / "m.bin", store).path == opened.path


def test_without_a_folder_for_the_store_a_pytorch_file_is_converted_for_this_process(tmp_path, clip_state):
    torch.save({f"model.{name}": value for name, value in clip_state.items()}, tmp_path / "m.bin")
    opened = hub.open_checkpoint(tmp_path / "m.bin", Store(None))
    assert opened.origin == tmp_path / "m.bin"
    assert all(torch.equal(opened.tensor(name), value) for name, value in clip_state.items())


@pytest.mark.parametrize(
    ("prefix", "extra", "message"),
    [
        ("", {"visual.head.bias": torch.ones(2)}, r"lacks 56 such as 'visual\."),
        (
            "visual.",
            {"visual.transformer.resblocks.0.attn.q_proj.bias": torch.ones(2)},
            "both are present|missing",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, clip_state, prefix, extra, message):
    state = {prefix + name.removeprefix("visual."): value for name, value in clip_state.items()}
    torch.save(state | extra, tmp_path / "m.bin")
    with pytest.raises(UserError, match=message):
        opened = hub.open_checkpoint(tmp_path / "m.bin", Store(tmp_path / "store"))
        checkpoint = Checkpoint.open(checkpoints.save(tmp_path / "base.safetensors", clip_state))
        from mergeability.task_vectors.vectors import TaskVectors

        TaskVectors.load({"a": opened}, checkpoint)


@pytest.mark.parametrize("head", ["classification_head.weight", "model.fc.bias", "val_accuracy.total"])
def test_what_is_not_of_the_tower_is_left_out_by_name(tmp_path, clip_state, head):
    state = {f"model.{name}": value for name, value in clip_state.items()}
    torch.save(state | {head: torch.ones(2)}, tmp_path / "m.bin")
    opened = hub.open_checkpoint(tmp_path / "m.bin", Store(tmp_path / "store"))
    assert list(opened.left_out.values()) == [[head]]
    assert opened.names == tuple(sorted(clip_state))
    assert all(torch.equal(opened.tensor(name), value) for name, value in clip_state.items())
    with pytest.raises(UserError, match=rf"found other tensors \(1\): {head}"):
        Checkpoint.canonical(state | {head: torch.ones(2)}, "it")


# --- a folder that an analysis finds ---


@pytest.fixture(scope="module")
def trained(smoke_root):
    return smoke_root / "checkpoints/clip_mini"


@pytest.fixture(scope="module")
def clip_state(trained):
    return safetensors.torch.load_file(trained / "none-0/seed-0/digits/model.safetensors")


def as_tanganke(state, folder):
    """Hugging Face's names without the projection, which the mini models do train: it is put back by the caller."""
    named = hugging_face.renamed(state)
    checkpoints.save(folder / "model.safetensors", {n: v for n, v in named.items() if "projection" not in n})


def as_reference(state, folder):
    leftovers = {"model.positional_embedding": torch.ones(3, 2), "model.ln_final.weight": torch.ones(2)}
    torch.save(
        {f"model.{name}": value for name, value in state.items()} | leftovers, folder / "pytorch_model.bin"
    )


def as_fork(state, folder):
    bare = {name.removeprefix("visual."): value for name, value in state.items()}
    torch.save({"state_dict": bare}, folder / "encoder.pt")


def imported(command, root, source, *more):
    return command("train", "experiment=import", f"source={source}", f"paths.root={root}", *more)


@pytest.fixture
def outputs(trained, tmp_path):
    """A folder of outputs with the smoke suite's base and plain models."""
    root = tmp_path / "outputs"
    shutil.copytree(trained, root / "checkpoints/clip_mini")
    return root


def test_imported_models_are_analysed_as_trained_ones_are(command, outputs, tmp_path, clip_state):
    sizes = ("task.source.train=128", "task.source.validation=32", "task.source.test=64")
    for task, write in zip(
        ("digits", "letters", "shapes", "orientation"), (as_reference, as_fork, as_reference, as_fork)
    ):
        folder = tmp_path / "elsewhere" / task
        folder.mkdir(parents=True)
        write(
            safetensors.torch.load_file(
                outputs / f"checkpoints/clip_mini/none-0/seed-0/{task}/model.safetensors"
            ),
            folder,
        )
        (source,) = folder.iterdir()
        ended = imported(command, outputs, source, f"task={task}", "evaluate=true", *sizes)
        assert ended.code == 0, ended.output
    place = outputs / "checkpoints/clip_mini/none-0+imported/seed-0/digits"
    card = json.loads((place / "card.json").read_text())
    own = json.loads((outputs / "checkpoints/clip_mini/none-0/seed-0/digits/card.json").read_text())
    assert card["source"] == "pytorch_model.bin", "no path of this machine"
    assert card["source_format"] == "PyTorch, open_clip's names under 'model.visual.'"
    assert card["source_sha256"] == checkpoints.file_hash(tmp_path / "elsewhere/digits/pytorch_model.bin")
    assert card["sha256"] == checkpoints.file_hash(place / "model.safetensors")
    assert card["head_sha256"] == own["head_sha256"]
    assert card["accuracy"]["test"] == own["accuracy"]["test"]
    assert card["base_accuracy"]["test"] == own["base_accuracy"]["test"]
    assert 0 < card["relative_norm"] < 0.5
    found = safetensors.torch.load_file(place / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in clip_state.items())
    tables = []
    for variant in ("null", "imported"):
        run = tmp_path / variant
        ended = command(
            "analyze", "suite=smoke", "merge=average", "predictor=none", f"variant={variant}",
            f"paths.root={outputs}", f"hydra.run.dir={run}", "logger=csv",
        )  # fmt: skip
        assert ended.code == 0, ended.output
        tables.append(pd.read_csv(run / "pairs.csv"))
    pd.testing.assert_frame_equal(*tables)


def written(tree, kind, count=24) -> list[tuple[np.ndarray, int]]:
    """Write test images of several sizes, and return them in the order in which they are read."""
    generator = np.random.default_rng(0)
    images = [
        (generator.integers(0, 256, (40 + 9 * (row % 4), 60 - 7 * (row % 3), 3), dtype=np.uint8), row % 10)
        for row in range(count)
    ]
    if kind == "disk":
        datasets = pytest.importorskip("datasets")
        columns = {
            "image": [Image.fromarray(pixels) for pixels, _ in images],
            "label": [label for _, label in images],
        }
        types = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict(columns, features=types)
        datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tree)
        return images
    for row, (pixels, label) in enumerate(images):
        place = tree / "test" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{row:03}.png")
    return sorted(images, key=lambda image: image[1])


@pytest.fixture(scope="module")
def untrained() -> tuple[ClipModel, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The mini model, the visual tower of its base, made from a seed, and one a little away from it."""
    model = ClipModel("clip_mini", OmegaConf.to_container(OmegaConf.load(MINI).architecture), 1e-3, 8)
    base = {f"visual.{name}": value for name, value in model.build().visual.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in base.items()}
    return model, base, {name: value + 0.3 * value.std() * noise[name] for name, value in base.items()}


def import_untrained(command, tmp_path, state, *arguments):
    source = checkpoints.save(tmp_path / "m.safetensors", state)
    # Without a command that makes it, the base is made from a seed.
    base = ("model=clip_mini", "model.base_command=null")
    return imported(command, tmp_path / "outputs", source, *base, *arguments)


@pytest.mark.parametrize("kind", ["folder", "disk"])
def test_accuracy_is_measured_on_images_of_several_sizes(command, tmp_path, untrained, kind):
    model, base, state = untrained
    images = written(tmp_path / "tree", kind)
    where = ("task=svhn", f"task.source={kind}", f"task.path={tmp_path / 'tree'}", "evaluate=true")
    ended = import_untrained(command, tmp_path, state, *where)
    assert ended.code == 0, ended.output
    place = tmp_path / "outputs/checkpoints/clip_mini/none-0+imported/seed-0/svhn"
    card = json.loads((place / "card.json").read_text())
    encoder, head = model.build().visual, safetensors.torch.load_file(place / "head.safetensors")["head"]
    for weights, name in ((base, "base_accuracy"), (state, "accuracy")):
        encoder.load_state_dict({key.removeprefix("visual."): value for key, value in weights.items()})
        logits = [
            encoder(model.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])) @ head.T
            for pixels, _ in images
        ]
        right = [int(found.argmax()) == label for found, (_, label) in zip(logits, images, strict=True)]
        assert card[name]["test"] == pytest.approx(sum(right) / len(images))
        assert 0 < sum(right) < len(images)
    assert list((tmp_path / "outputs/store").rglob("images/*/*.safetensors")), "kept for the analysis"


def test_accuracy_without_a_task_is_refused(command, tmp_path, untrained):
    *_, state = untrained
    ended = import_untrained(
        command, tmp_path, state, "~task", f"folder={tmp_path / 'f'}", "evaluate=true", "base=null"
    )
    assert ended.code == 1
    assert "no task is given" in ended.output
    assert not (tmp_path / "f").exists()


def test_a_task_without_a_base_is_refused_since_its_head_would_be_of_a_random_text_tower(
    command, tmp_path, untrained
):
    *_, state = untrained
    ended = import_untrained(command, tmp_path, state, "task=digits", "base=null")
    assert ended.code == 1
    assert "head of 'digits'" in ended.output
    assert "no base is given" in ended.output
    assert not list((tmp_path / "outputs").rglob("head.safetensors"))


def test_an_import_is_done_once_and_a_changed_source_is_noticed(command, outputs, tmp_path, clip_state):
    checkpoints.save(tmp_path / "m.safetensors", clip_state)
    for said in ("Imported", "Already finished"):
        ended = imported(command, outputs, tmp_path / "m.safetensors")
        assert ended.code == 0, ended.output
        assert said in ended.output
    checkpoints.save(tmp_path / "m.safetensors", {name: value * 1.01 for name, value in clip_state.items()})
    ended = imported(command, outputs, tmp_path / "m.safetensors")
    assert ended.code == 1
    assert "source_sha256" in ended.output
    assert imported(command, outputs, tmp_path / "m.safetensors", "overwrite=true").code == 0


def test_a_missing_projection_is_the_bases_own(command, outputs, tmp_path, clip_state):
    base = safetensors.torch.load_file(outputs / "checkpoints/clip_mini/base/model.safetensors")
    (tmp_path / "theirs").mkdir()
    as_tanganke(clip_state, tmp_path / "theirs")
    ended = imported(command, outputs, tmp_path / "theirs")
    assert ended.code == 0, ended.output
    place = outputs / "checkpoints/clip_mini/none-0+imported/seed-0/digits"
    found = safetensors.torch.load_file(place / "model.safetensors")
    assert torch.equal(found["visual.proj"], base["visual.proj"])
    assert torch.equal(found["visual.ln_post.bias"], clip_state["visual.ln_post.bias"])
    card = json.loads((place / "card.json").read_text())
    assert (
        card["source_format"]
        == "safetensors, Hugging Face's CLIP names under 'vision_model.', without a projection"
    )


def test_without_a_task_there_is_no_head_and_hugging_face_can_read_it(command, outputs, tmp_path, clip_state):
    import transformers

    (tmp_path / "theirs").mkdir()
    as_reference(clip_state, tmp_path / "theirs")
    folder = tmp_path / "exported"
    ended = imported(
        command,
        outputs,
        tmp_path / "theirs",
        "~task",
        "model=clip_mini",
        f"folder={folder}",
        "export=hf",
        "base=null",
    )
    assert ended.code == 0, ended.output
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "card.json", "config.json", "preprocessor_config.json",
    }  # fmt: skip
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
    torch.testing.assert_close(tower.visual_projection.weight.T, clip_state["visual.proj"])


def test_another_architecture_or_base_is_refused_and_leaves_nothing(command, outputs, tmp_path, clip_state):
    other = {name: torch.randn_like(value) for name, value in clip_state.items()}
    short = {name: value for name, value in clip_state.items() if "ln_post" not in name}
    wide = clip_state | {"visual.proj": torch.ones(128, 65)}
    broken = clip_state | {"visual.proj": torch.full((128, 64), torch.nan)}
    for state, message in (
        (other, "was not fine-tuned from this base"),
        (short, "missing (2): visual.ln_post.bias, visual.ln_post.weight"),
        (wide, "visual.proj (128, 65) instead of (128, 64)"),
        (broken, "NaN or Inf in visual.proj"),
    ):
        ended = imported(command, outputs, checkpoints.save(tmp_path / "m.safetensors", state))
        assert ended.code == 1
        assert message in ended.output, ended.output
        assert "Traceback" not in ended.output
        assert not (outputs / "checkpoints/clip_mini/none-0+imported").exists()


def test_a_suite_of_hub_ids_is_measured_from_the_cache(command, cache, outputs, tmp_path):
    states = {
        task: safetensors.torch.load_file(
            outputs / f"checkpoints/clip_mini/none-0/seed-0/{task}/model.safetensors"
        )
        for task in TASKS
    }
    base = safetensors.torch.load_file(outputs / "checkpoints/clip_mini/base/model.safetensors")
    for state in states.values():
        state["visual.proj"] = base["visual.proj"]
    publish(cache, "somebody/base", lambda folder: checkpoints.save(folder / "model.safetensors", base))
    publish(cache, "somebody/clip_digits", lambda folder: as_tanganke(states["digits"], folder))
    publish(cache, "other/ViT-Letters", lambda folder: as_reference(states["letters"], folder))
    local = [str(checkpoints.save(tmp_path / f"{task}.safetensors", state)) for task, state in states.items()]
    tables = []
    for run, (first, second) in {
        "hub": ("somebody/clip_digits", "other/ViT-Letters"),
        "local": local,
    }.items():
        of_base = (
            "somebody/base" if run == "hub" else outputs / "checkpoints/clip_mini/base/model.safetensors"
        )
        ended = command(
            "analyze", "suite=checkpoints", f"suite.base={of_base}",
            f"suite.models={{digits: '{first}', letters: '{second}'}}", f"paths.root={tmp_path / 'elsewhere'}",
            f"hydra.run.dir={tmp_path / run}", "logger=csv",
        )  # fmt: skip
        assert ended.code == 0, ended.output
        tables.append(pd.read_csv(tmp_path / run / "pairs.csv"))
    pd.testing.assert_frame_equal(*tables)
    ended = command(
        "analyze", "suite=checkpoints", "suite.base=somebody/base", "suite.models={a: somebody/gone, b: somebody/base}",
        f"paths.root={tmp_path / 'elsewhere'}", "logger=csv",
    )  # fmt: skip
    assert ended.code == 1
    assert "Run `hf download somebody/gone`" in ended.output
