"""Use an installed mergeability as a user does: in Python and by its command, on checkpoints that this script makes."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import mergeability

# Each command with what its output must contain; {base}, {a} and {b} are files.
COMMANDS = [
    ("--help", ["compare", "predict", "merge", "list"]),
    ("--version", [mergeability.__version__]),
    ("list metrics", ["task_vector_cosine_similarity", "sign_conflict"]),
    ("compare {base} first={a} {b} --store none --report report", ["task_vector_cosine_similarity", "first"]),
]


def make_checkpoints(folder: Path) -> dict[str, str]:
    """Write a base model and two models that differ from it; return their paths."""
    generator = torch.Generator().manual_seed(0)
    base = {"hidden.weight": torch.randn(8, 6, generator=generator), "hidden.bias": torch.zeros(8)}
    states = {"base": base}
    for name in ("a", "b"):
        states[name] = {
            key: one + 0.1 * torch.randn(one.shape, generator=generator) for key, one in base.items()
        }
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in states}


def check_python(paths: dict[str, str]) -> None:
    """Measure and merge in Python; the average must be the one that PyTorch computes."""
    models = mergeability.TaskVectors.load({name: paths[name] for name in ("a", "b")}, base=paths["base"])
    table = mergeability.measure(models)
    if len(table) != 1 or not -1 <= table["task_vector_cosine_similarity"].item() <= 1:
        raise SystemExit(f"measure returned {table}")
    merged = mergeability.merge(
        paths["base"], {name: paths[name] for name in ("a", "b")}, method="average"
    ).state_dict
    states = [mergeability.checkpoints.load(paths[name]) for name in ("a", "b")]
    torch.testing.assert_close(merged, {name: (one + states[1][name]) / 2 for name, one in states[0].items()})


def check_command(arguments: list[str], expected: list[str], folder: Path) -> None:
    """Run the command; it must succeed and print what is expected."""
    program = shutil.which("mergeability")
    if program is None:
        raise SystemExit("The command `mergeability` is not installed.")
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    lost = [word for word in expected if word not in done.stdout]
    if done.returncode or lost:
        raise SystemExit(
            f"mergeability {arguments} returned {done.returncode}, without {lost}:\n{done.stdout}\n{done.stderr}"
        )


def main() -> None:
    """Run everything in a temporary folder."""
    tree = Path(__file__).resolve().parent.parent
    if tree in Path(mergeability.__file__).resolve().parents and "site-packages" not in mergeability.__file__:
        raise SystemExit(f"This tests an installed package, but {mergeability.__file__} is the working tree.")
    # Windows cannot remove files that are still mapped when the block ends.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        paths = make_checkpoints(folder)
        check_python(paths)
        sys.stdout.write("Python: measured and merged\n")
        for command, expected in COMMANDS:
            check_command(command.format(**paths).split(), expected, folder)
            sys.stdout.write(f"mergeability {command}: done\n")


if __name__ == "__main__":
    main()
