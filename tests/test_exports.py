"""Every name that a package exports resolves: as an attribute, by `import *`, in `dir`, and to what the stub says."""

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mergeability

PACKAGES = [
    "mergeability",
    *(found.name for found in pkgutil.walk_packages(mergeability.__path__, "mergeability.") if found.ispkg),
]


def stub(package):
    """Name -> the module and the name there that the stub says it is; a submodule has no name there."""
    path = Path(import_module(package).__file__).with_suffix(".pyi")
    found = {}
    for node in ast.parse(path.read_text()).body if path.exists() else ():
        if isinstance(node, ast.ImportFrom):
            for one in node.names:
                module = f"{package}.{node.module}" if node.module else package
                found[one.asname or one.name] = (module, one.name)
    return found


def test_there_are_packages_to_look_at():
    assert {"mergeability", "mergeability.merging", "mergeability.data.real"} <= set(PACKAGES)
    assert sum(len(stub(package)) for package in PACKAGES) > 60


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_resolves(package):
    module = import_module(package)
    exported = list(getattr(module, "__all__", ()))
    assert len(exported) == len(set(exported))
    assert set(exported) <= set(dir(module))
    namespace: dict = {}
    exec(f"from {package} import *", namespace)
    assert set(exported) <= set(namespace)
    assert set(exported) >= set(stub(package)), "a name of the stub is not exported"
    # With every submodule imported: a module must not hide the function of its name.
    for found in pkgutil.iter_modules(module.__path__):
        import_module(f"{package}.{found.name}")
    for name, (source, original) in stub(package).items():
        there = import_module(source)
        expected = getattr(there, original, None) if source != package else import_module(f"{package}.{name}")
        assert getattr(module, name) is expected is namespace[name], name


def test_a_fresh_interpreter_resolves_them_too():
    """Nothing may depend on what another test has imported."""
    code = (
        "import sys; from importlib import import_module\n"
        "for package in sys.argv[1:]:\n"
        "    module = import_module(package)\n"
        "    assert all(getattr(module, name) is not None for name in getattr(module, '__all__', ())), package\n"
    )
    subprocess.run([sys.executable, "-c", code, *PACKAGES], check=True, timeout=300)
