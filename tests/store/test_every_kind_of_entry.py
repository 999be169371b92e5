"""Damage to any kind of entry of a whole analysis is noticed, and its results are the same bytes afterwards."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mergeability.store import checked_entries
from mergeability.store import folder as store_folder

ROOT = Path(__file__).parents[2]
# Kinds that an analysis of tasks files, in the order of what follows from what; and what has to be damaged as well
# for a kind to be asked for at all, since what follows from it is there.
CONSUMERS = {
    "images": (),
    "image_fingerprint": (),
    "base_norm": ("relative_norm",),
    "relative_norm": (),
    "activation": ("gram",),
    "gradient": ("gram",),
    "singular": ("overlap",),
    "gram": (),
    "overlap": (),
    "magnitude": ("sign_count",),
    "sign_count": (),
    "shared_gradient": (),
    "features": (),
    "probe_features": ("probe",),
    "probe": (),
    "svd": ("accuracy",),
    "fisher": ("accuracy",),
    "linear_parts": ("accuracy",),
    "linear_inputs": ("accuracy",),
    "accuracy": (),
    "pixel_accuracy": (),
    "study": (),
}
# Filed by others: hashes of files by a store of their own, models of PyTorch's kind by suites of bare checkpoints, remarks
# on the images of folders by their tasks, the baseline of texts by itself.
ELSEWHERE = {
    "architectures",
    "file_hash",
    "converted",
    "converted_names",
    "converted_plain",
    "image_remarks",
    "tfidf_accuracy",
}
TABLES = ("pairs.csv", "prediction.json")
# One metric and one method for each kind there is.
METRICS = (
    "task_vector_cosine_similarity", "activation_cosine_similarity", "encoder_gradient_cosine_similarity",
    "subspace_overlap", "sign_conflict", "shared_encoder_gradient_cosine_similarity",
    "base_agreement",
)  # fmt: skip
SUITE = (
    "suite=smoke", "model=clip_mini", "logger=csv", "pairs=[[digits,letters],[letters,shapes],[shapes,orientation]]",
)  # fmt: skip
REQUEST = (
    *SUITE, f"metric=[{','.join(METRICS)}]", "merge=[tsv,fisher,regmean]", "profile.merge_samples=8",
    "probe=8",
    "predictor=mean", "prediction.permutations=0", "prediction.seeds=0", "prediction.protocols=[loto]",
    "prediction.targets=[acc]", "prediction.ablation=false",
)  # fmt: skip
# What needs no gradients: seconds.
REDUCED = (
    *SUITE,
    "metric=[task_vector_cosine_similarity,subspace_overlap,sign_conflict]",
    "merge=tsv",
    "predictor=none",
)
TOGETHER_REQUEST = (
    *SUITE,
    "metric=[task_vector_cosine_similarity,sign_conflict]",
    "merge=average",
    "predictor=none",
)
LEFT_OUT = {
    "activation", "gradient", "shared_gradient", "fisher", "linear_parts", "linear_inputs", "study", "features", "probe",
    "probe_features",
}  # fmt: skip


def kinds_in_the_source() -> set[str]:
    """Read which kinds the package files: the first argument of whatever a store is asked to file."""
    asked = r"(?:store|notes)\.(?:arrays|ensure|ensure_written|(?:add_)?record)\(\s*\"(\w+)\"|self\._ensure\(\s*\"(\w+)\""
    declared = r"kind: ClassVar\[str\] = \"(\w+)\""
    text = "\n".join(path.read_text() for path in (ROOT / "mergeability").rglob("*.py"))
    # Examples in docstrings file nothing in anybody's store.
    text = re.sub(r"^\s*(>>>|\.\.\.) .*$", "", text, flags=re.MULTILINE)
    kinds = {kind for pair in re.findall(asked, text) for kind in pair if kind}
    return kinds | set(re.findall(declared, text))


def new_process() -> None:
    checked_entries._CHECKED.clear()
    store_folder._SWEPT.clear()


def entries(store: Path, kind: str) -> list[Path]:
    return sorted(path for path in store.glob(f"{kind}/*/*") if path.is_file())


def flip(path: Path, generator: random.Random) -> None:
    """Change one byte as a disk does: without a trace in the time stamps."""
    status, data = path.stat(), bytearray(path.read_bytes())
    position = generator.randrange(len(data))
    data[position] ^= 1 << generator.randrange(8)
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def run(smoke_root, command, tmp_path_factory):
    """Analyse the smoke suite on a store; return what was computed, the tables and what was said."""

    def analyse(store: Path, request=REQUEST):
        folder = tmp_path_factory.mktemp("run")
        new_process()
        where = (f"paths.root={smoke_root}", f"paths.store={store}", f"hydra.run.dir={folder}")
        ended = command("analyze", *request, *where)
        assert ended.code == 0, ended.output
        computed = json.loads((folder / "run.json").read_text())["computed"]
        tables = [(folder / name).read_bytes() for name in TABLES]
        return computed, tables, ended.output

    return analyse


@pytest.fixture(scope="module")
def first(run, tmp_path_factory):
    store = tmp_path_factory.mktemp("first") / "store"
    return store, *run(store)


def test_every_kind_is_looked_at_here():
    assert kinds_in_the_source() == CONSUMERS.keys() | ELSEWHERE


def damage_everything(store: Path) -> int:
    """Flip one byte in each entry; say in how many."""
    generator = random.Random(9)
    paths = [path for kind in CONSUMERS for path in entries(store, kind)]
    for path in paths:
        flip(path, generator)
    return len(paths)


def assert_made_again(run, store, request, computed, tables):
    count = damage_everything(store)
    again, found, output = run(store, request)
    assert again == computed
    assert found == tables
    assert output.count("Damaged entry") == count == sum(computed.values())
    assert run(store, request)[:2] == ({}, tables)


def test_with_every_entry_of_weights_and_images_damaged_the_results_are_the_same(run, tmp_path):
    store = tmp_path / "store"
    computed, tables, _ = run(store, REDUCED)
    assert computed.keys() == CONSUMERS.keys() - LEFT_OUT
    assert_made_again(run, store, REDUCED, computed, tables)
    hashes = entries(store, "file_hash")
    assert len(hashes) == 5, "of the base and four models"
    for path in hashes:
        flip(path, random.Random(2))
    again, found, output = run(store, REDUCED)
    assert (again, found) == ({}, tables)
    assert output.count("Damaged entry") == 5


@pytest.mark.slow
def test_with_every_entry_damaged_the_results_are_the_same(first, run, tmp_path):
    origin, computed, tables, _ = first
    assert computed.keys() == CONSUMERS.keys()
    shutil.copytree(origin, tmp_path / "store")
    assert_made_again(run, tmp_path / "store", REQUEST, computed, tables)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONSUMERS)
def test_one_flipped_byte_is_noticed(first, run, tmp_path, kind):
    origin, _, tables, _ = first
    store, generator = tmp_path / "store", random.Random(kind)
    shutil.copytree(origin, store)
    for consumer in CONSUMERS[kind]:
        shutil.rmtree(store / consumer)
    paths = entries(store, kind)
    # Models, layers and pairs are read in any order, and some pairs share what was computed for others.
    path = generator.choice(paths)
    flip(path, generator)
    computed, found, output = run(store)
    assert computed.get(kind) == 1, computed
    assert found == tables
    assert output.count("Damaged entry") == 1
    assert str(path) in output


def test_a_damaged_conversion_is_made_again(smoke_root, command, tmp_path):
    folder = smoke_root / "checkpoints/clip_mini"
    models = {}
    for name in ("base", "none-0/seed-0/digits", "none-0/seed-0/letters"):
        state = safetensors.torch.load_file(folder / name / "model.safetensors")
        models[name] = tmp_path / f"{name.rpartition('/')[2]}.bin"
        torch.save({key: value for key, value in state.items() if key.startswith("visual.")}, models[name])
    base, *tuned = models.values()
    given = [f"{path.stem}: {path}" for path in tuned]
    request = (
        "suite=checkpoints",
        f"suite.base={base}",
        f"suite.models={{{', '.join(given)}}}",
        "metric=weights",
    )

    def analyse(number: int):
        new_process()
        where = (f"paths.root={tmp_path}", f"hydra.run.dir={tmp_path}/{number}", "logger=csv")
        ended = command("analyze", *request, *where)
        assert ended.code == 0, ended.output
        computed = json.loads((tmp_path / f"{number}/run.json").read_text())["computed"]
        return computed, (tmp_path / f"{number}/pairs.csv").read_bytes()

    first, table = analyse(1)
    for kind in ("converted", "converted_names"):
        for path in entries(tmp_path / "store", kind):
            flip(path, random.Random(4))
        assert first[kind] == 3
    # The same hash as before: nothing that follows from it is computed again.
    assert analyse(2) == ({"converted": 3, "converted_names": 3}, table)
    assert analyse(3) == ({}, table)


# Four processes that have imported everything, and begin at one moment: `analyze.py` as a person runs it.
TOGETHER = """
import json, multiprocessing, os, runpy, sys
import mergeability.pipeline.run, mergeability.commands.analyze, mergeability.reporting.report, sklearn.linear_model, sklearn.pipeline

def analyse(number, arguments, start):
    output = os.open(f"output{number}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.argv = ["analyze.py", *arguments]
    start.wait()
    runpy.run_path(ROOT + "/analyze.py", run_name="__main__")

ROOT, jobs = sys.argv[1], json.loads(sys.argv[2])
context = multiprocessing.get_context("fork")
start = context.Barrier(len(jobs))
processes = [context.Process(target=analyse, args=(n, job, start)) for n, job in enumerate(jobs)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print(json.dumps([process.exitcode for process in processes]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_four_analyses_that_start_together_on_an_empty_store_all_succeed(smoke_root, tmp_path):
    ended = []
    for repetition in range(10):
        place = tmp_path / str(repetition)
        place.mkdir()
        store, folders = place / "store", [place / f"run{number}" for number in range(4)]
        jobs = [
            [*TOGETHER_REQUEST, f"paths.root={smoke_root}", f"paths.store={store}", f"hydra.run.dir={folder}"]
            for folder in folders
        ]
        told = subprocess.run(
            [sys.executable, "-c", TOGETHER, str(ROOT), json.dumps(jobs)],
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=1200,
        )
        codes = json.loads(told.stdout.splitlines()[-1])
        outputs = [path.read_text() for path in sorted(place.glob("output*.txt"))]
        assert codes == [0] * 4, outputs
        for name in TABLES:
            assert len({(folder / name).read_bytes() for folder in folders}) == 1, name
        assert not any("Damaged" in output for output in outputs)
        assert not list((store / ".partial").iterdir())
        ended += codes
    assert len(ended) == 40
