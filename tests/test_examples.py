"""Every public function and class has an example with printed output, which `--doctest-modules` runs."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import tomllib
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Beginnings of full names → why what is called so has no example.
EXEMPT = {
    "mergeability.profiles.shared_gradients.Side": "made and used by SharedGradientGrams alone",
    "mergeability.profiles.shared_gradients.pair_grams": "made and used by SharedGradientGrams alone",
    "mergeability.weights.checkpoints.assembled": "names of tensors in files: reached through Checkpoint",
    "mergeability.weights.hub.downloaded": "needs a network",
    "mergeability.weights.names.": "names of tensors in files: reached through Checkpoint",
}

# Import names of what `make setup` does not install.
OPTIONAL = {"ray", "mlflow", "tensorboard", "wandb_workspaces", "submitit", "hydra_plugins"}


def public_names() -> dict[str, object]:
    """Full name → function or class that a stub exports, itself or with its module, or that a file of `conf` names."""
    found: dict[str, object] = {}
    for package, name in [*exported(), *configured()]:
        one = getattr(importlib.import_module(package), name)
        for member in members(one) if isinstance(one, types.ModuleType) else [one]:
            if inspect.isclass(member) or inspect.isfunction(member):
                found[f"{member.__module__}.{member.__qualname__}"] = member
    return found


def exported() -> Iterator[tuple[str, str]]:
    """Every name in a stub, with its package."""
    for path in sorted((ROOT / "mergeability").rglob("*.pyi")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        yield from ((package, alias.asname or alias.name) for node in imports for alias in node.names)


def configured() -> Iterator[tuple[str, str]]:
    """Every target in a configuration file, with its module; targets in `commands` exist for Hydra alone."""
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        for target in re.findall(r"_target_: (mergeability\.\S+)", path.read_text()):
            if not target.startswith("mergeability.commands."):
                package, _, name = target.rpartition(".")
                yield package, name


def members(module: types.ModuleType) -> list[object]:
    """The public functions and classes that a module defines, or the modules of a package without a stub."""
    if not hasattr(module, "__path__"):
        own = [one for name, one in vars(module).items() if not name.startswith("_")]
        return [one for one in own if getattr(one, "__module__", None) == module.__name__]
    folder = Path(module.__path__[0])
    if module.__name__ == "mergeability.commands" or (folder / "__init__.pyi").exists():
        return []
    inside = [
        importlib.import_module(f"{module.__name__}.{found.name}") for found in pkgutil.iter_modules([folder])
    ]
    return [one for submodule in inside for one in members(submodule)]


def fault(one: object) -> str | None:
    """Say what is wrong with the examples of a function or class."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(one) or "")
    if not examples:
        return "no example"
    if any(example.options.get(doctest.SKIP) for example in examples):
        return "skipped"
    if not any(example.want for example in examples):
        return "no output"
    return None


@cache
def run_in(module: str) -> frozenset[str]:
    """The full names whose examples are found in a module, as pytest finds them."""
    found = doctest.DocTestFinder().find(importlib.import_module(module), module)
    return frozenset(test.name for test in found if test.examples)


PUBLIC = public_names()
WANTED = [name for name in PUBLIC if not name.startswith(tuple(EXEMPT))]


def test_the_public_names_are_found():
    assert len(WANTED) > 160
    assert {
        "mergeability.metrics.measure.measure",
        "mergeability.merging.ties.Ties",
        "mergeability.errors.UserError",
        "mergeability.data.rendered.subjects.subject.Subject",
        "mergeability.metrics.functional.base_overlap",
        "mergeability.weights.checkpoints.save",
        "mergeability.linalg.polar.polar_factor",
        "mergeability.finetuning.penalties.l2_to_init.L2ToInit",
    } <= set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_a_public_name_has_an_example_that_is_run(name):
    assert fault(PUBLIC[name]) is None
    assert name in run_in(PUBLIC[name].__module__)


@pytest.mark.parametrize("beginning", EXEMPT)
def test_an_exemption_is_needed(beginning):
    own = [one for name, one in PUBLIC.items() if name.startswith(beginning)]
    assert [one for one in own if fault(one) is not None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Add numbers.", "no example"),
        ("Add.\n\n>>> 1 + 1\n2", None),
        ("Add.\n\n>>> total = 1 + 1", "no output"),
        ("Add.\n\n>>> 1 + 1\n2\n>>> 1 + 2  # doctest: +SKIP\n3", "skipped"),
    ],
)
def test_a_missing_example_would_be_noticed(text, expected):
    def add():
        pass

    add.__doc__ = text
    assert fault(add) == expected


def test_make_test_runs_the_examples():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"]
    assert "mergeability" in options["testpaths"]
    assert not [
        option for option in options["addopts"] if option.startswith(("--ignore", "--doctest-ignore"))
    ]


def test_no_other_module_imports_the_tiny_models():
    importing = [
        path
        for path in (ROOT / "mergeability").rglob("*.py")
        for line in path.read_text().splitlines()
        if "mergeability.examples" in line
        and not line.strip().startswith((">>>", "..."))
        and path.name != "examples.py"
    ]
    assert importing == []


def test_modules_import_no_optional_package():
    """Collecting the examples imports every module, also where only `make setup` was run."""
    imported = {}
    for path in (ROOT / "mergeability").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.partition(".")[0]: path for name in names}
    assert "torch" in imported
    assert OPTIONAL & set(imported) == set()
