"""Pages of the documentation site that are generated: the reference, settings, glossary, API and lists of files.

A hook of MkDocs (`hooks` in mkdocs.yml). `pages` needs neither MkDocs nor the packages that members use, and is tested
without them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The catalogue is read from this checkout, which need not be installed.
sys.path.insert(0, str(ROOT))

from mergeability.commands import catalogue  # noqa: E402
from mergeability.commands.catalogue_entries import REAL, RENDERED, TEXTS  # noqa: E402
from mergeability.commands.member_docs import docstring, flattened, shown_value, yaml_comments  # noqa: E402
from mergeability.members import located, options_of  # noqa: E402

GLOSSARY = ROOT / "mergeability/reporting/glossary.md"
TITLES = {
    "metrics": "Metrics",
    "methods": "Merge methods",
    "penalties": "Penalties",
    "predictors": "Predictors",
    "protocols": "Protocols",
    "tasks": "Tasks",
    "models": "Models",
    "suites": "Suites",
}
INTRODUCTIONS = {
    "metrics": "A metric compares two fine-tuned models before any merge. The sets `metric=paper` (the 28 published "
    "metrics), `minimal`, `weights`, `functional`, `shared` and `all` select several.",
    "methods": "A merge method combines the task vectors τ_t = θ_t − θ_0 of T models into one, M; the merged model is "
    "θ_0 + α M. `merge=paper` selects the six published ones, `data_free` those without images, `all` every one.",
    "penalties": "A penalty adds λ R to the loss while a model is fine-tuned, so that models merge better.",
    "predictors": "A predictor estimates the outcome of a merge from metrics or from other evidence. `predictor=all` "
    "compares all of them.",
    "protocols": "A protocol says which pairs a predictor is fitted on and which pairs it is validated on.",
    "tasks": "A task is a data set with class names and prompts.",
    "models": "A model is a CLIP with its pretrained weights and default settings for fine-tuning.",
    "suites": "A suite is a list of models that are compared: of tasks, of checkpoints, or a table of pairs.",
}

# Sections of the page of settings: title, prefix on the command line, and the file.
SETTINGS = (
    ("`mergeability analyze`", "", ".", "analyze"),
    ("`mergeability train`", "", ".", "train"),
    ("Evidence (`profile`)", "profile.", "profile", "default"),
    ("Folders (`paths`)", "paths.", "paths", "default"),
    ("The trainer (`trainer`)", "trainer.", "trainer", "default"),
    ("Real images (`task`)", "task.", "task/base", "images"),
)
# The classes whose docstrings describe them: file and prefix → class.
DESCRIBED = {
    ("./analyze", ""): "mergeability.pipeline.request.MergeSettings",
    ("./analyze", "prediction."): "mergeability.prediction.study.StudySettings",
    ("./train", "training."): "mergeability.finetuning.module.TrainingSettings",
    ("profile/default", ""): "mergeability.pipeline.request.ProfileSettings",
    ("task/base/images", ""): "mergeability.data.real.source.image_task",
    ("task/base/images", "dataset."): "mergeability.data.real.layouts.Layout",
}


def pages() -> dict[str, str]:
    """Return all generated pages: path below docs/ → Markdown."""
    found: dict[str, str] = {}
    for kind in catalogue.KINDS:
        found |= dict(_kind(kind))
    found["reference/settings.md"] = _settings()
    found["glossary.md"] = _glossary()
    found |= dict(_api())
    found["contributing.md"] = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found["changelog.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found["decisions/index.md"] = _decisions()
    for path in sorted((ROOT / "benchmarks/results").glob("*.md")):
        found[f"benchmarks/results/{path.name}"] = path.read_text(encoding="utf-8")
    return found


def _kind(kind: str) -> Iterator[tuple[str, str]]:
    """Yield the pages of a kind: its list, and one page per entry, or per group for tasks."""
    entries = catalogue.entries(kind)
    rows = ["| name | summary |", "|---|---|"]
    for one in entries:
        link = f"{_group_page(one.group)}#{one.name}" if kind == "tasks" else f"{one.name}.md"
        rows.append(f"| [`{one.name}`]({link}) | {_cell(one.summary)} |")
    yield (
        f"reference/{kind}/index.md",
        "\n\n".join([f"# {TITLES[kind]}", INTRODUCTIONS[kind], "\n".join(rows)]) + "\n",
    )
    if kind == "tasks":
        for group in (RENDERED, REAL, TEXTS):
            members = [one for one in entries if one.group == group]
            body = "\n\n".join(_lowered(_linked(one)) for one in members)
            yield f"reference/tasks/{_group_page(group)}", f"# Tasks with {group}\n\n{body}\n"
        return
    for one in entries:
        yield f"reference/{kind}/{one.name}.md", _linked(one)


def _group_page(group: str) -> str:
    return f"{group.split()[0]}.md"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _lowered(page: str) -> str:
    """Make the title of a page a section, with an anchor of its name."""
    title, rest = page.split("\n", 1)
    name = title.strip("# `")
    return f"## `{name}` {{ #{name} }}\n{rest}"


def _linked(one: catalogue.Entry) -> str:
    """Return the page of an entry with its implementation linked to the API."""
    page = catalogue.page(one)
    place = located(one.implementation) if one.implementation.startswith("mergeability.") else None
    if place is None:
        return page
    node, path = place
    full = f"{_module(path)}.{node.name}"
    mark = f"Implemented by `{one.implementation}`."
    return page.replace(mark, f"Implemented by [`{one.implementation}`][{full}].")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _settings() -> str:
    parts = [
        "# Settings",
        "Settings of `mergeability analyze` and `mergeability train` with their defaults. `--cfg job` shows the whole "
        "configuration of the command it is added to. Options of metrics, methods, penalties, predictors, tasks, "
        "models and suites are on their pages.",
    ]
    for title, prefix, group, name in SETTINGS:
        rows = ["| setting | default | meaning |", "|---|---|---|"]
        rows += [
            f"| `{prefix}{key}` | `{value}` | {_cell(meaning)} |"
            for key, value, meaning in settings(group, name)
        ]
        parts += [f"## {title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def settings(group: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the settings of a file of `conf`: dotted name, default and meaning."""
    described = {
        f"{prefix}{key}": re.sub(r"\bNone\b", "null", text)
        for (wanted, prefix), target in DESCRIBED.items()
        if wanted == f"{group}/{name}"
        for key, text in docstring(target).parameters.items()
    }
    if name == "analyze":
        # The seed of the draw of sets is a setting of another name.
        described["sets_seed"] = described.pop("seed")
    comments = yaml_comments(ROOT / "conf" / group / f"{name}.yaml").comments
    for key, value in flattened(options_of(group, name)):
        # What Hydra and the configuration wire among themselves is not for command lines.
        if not key.startswith(("hydra.", "analysis.", "settings.", "tracking.")) and "_target_" not in key:
            yield key, shown_value(value), described.get(key) or comments.get(key, "")


def _glossary() -> str:
    """Return the glossary of the report as a page; its terms are the single source."""
    if not GLOSSARY.exists():
        return "# Glossary\n\nThe glossary is part of the report.\n"
    text = GLOSSARY.read_text(encoding="utf-8").strip()
    terms = re.split(r"^## ", text, flags=re.MULTILINE)
    body = sorted((one.strip() for one in terms[1:]), key=lambda one: one.lower())
    return "# Glossary\n\nThe terms of reports and of this documentation.\n\n" + "".join(
        f"## {one}\n\n" for one in body
    )


def _decisions() -> str:
    rows = []
    for path in decisions():
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        rows.append(f"- [{path.stem[:4]}]({path.name}): {title}")
    return "# Decisions\n\nChoices that look odd, with their reasons.\n\n" + "\n".join(rows) + "\n"


def decisions() -> list[Path]:
    """List the records of decisions."""
    return sorted((ROOT / "docs/decisions").glob("0*.md"))


def public_names() -> dict[str, list[str]]:
    """Return the dotted names that stubs export and that `conf` names: package → names, each once.

    Raises:
        ValueError: one of them has no docstring.
    """
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    stubs = sorted((ROOT / "mergeability").rglob("*.pyi"), key=lambda path: (-len(path.parts), path))
    for stub in stubs:
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        for name in [*_exported(stub, package), *_configured(package)]:
            if name not in seen:
                seen.add(name)
                found.setdefault(package, []).append(name)
    return dict(sorted(found.items()))


def _exported(stub: Path, package: str) -> Iterator[str]:
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            module = f"{package}.{node.module}" if node.module else package
            yield from _documented(module, alias.name)


def _documented(module: str, name: str) -> Iterator[str]:
    """Yield what an export stands for: a class or function, or all of a module; nothing for packages and constants."""
    folder = ROOT.joinpath(*module.split("."))
    file = folder / f"{name}.py"
    if file.is_file():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield _checked(node, f"{module}.{name}.{node.name}")
        return
    place = located(f"{module}.{name}")
    if place is not None:
        node, path = place
        yield _checked(node, f"{_module(path)}.{node.name}")


def _checked(node: ast.ClassDef | ast.FunctionDef, name: str) -> str:
    if not ast.get_docstring(node):
        raise ValueError(f"{name} has no docstring, so its page would be empty: write one.")
    return name


def _configured(package: str) -> Iterator[str]:
    """Yield the implementations of members that no stub exports, in the package that they belong to."""
    for kind in catalogue.KINDS:
        for one in catalogue.entries(kind):
            place = located(one.implementation) if one.implementation.startswith("mergeability.") else None
            if place is not None and _module(place[1]).startswith(f"{package}."):
                yield _checked(place[0], f"{_module(place[1])}.{place[0].name}")


def _api() -> Iterator[tuple[str, str]]:
    names = public_names()
    rows = []
    for package, members in names.items():
        source = ROOT.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        rows.append(f"- [`{package}`]({package}.md): {summary}")
        directives = "\n\n".join(f"::: {name}" for name in members)
        yield f"api/{package}.md", f"# `{package}`\n\n{summary}\n\n{directives}\n"
    start = (
        "# API\n\nThe public names of every package. `mergeability` itself exports `measure`, `merging`, "
        "`checkpoints`, `Profiles`, `TaskVectors`, `Store` and `UserError`; see the [guide](../guides/python.md).\n\n"
    )
    yield "api/index.md", start + "\n".join(rows) + "\n"


def rewritten(markdown: str, uri: str) -> str:
    """Turn links to files of the repository into links of the site.

    Args:
        markdown: a page.
        uri: its path below docs/.
    """
    depth = uri.count("/")

    def replaced(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        base = {"contributing.md": "", "changelog.md": ""}.get(uri, "docs")
        if uri.startswith("benchmarks/"):
            base = "benchmarks/results"
        elif base:
            base = "/".join(["docs", *uri.split("/")[:-1]])
        resolved = _normal(f"{base}/{target}" if base else target)
        site = _on_site(resolved)
        return found[0] if site is None else f"{found[1]}{'../' * depth}{site}{anchor})"

    # Not in code.
    parts = re.split(r"(```.*?```|`[^`\n]*`)", markdown, flags=re.DOTALL)
    link = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?\)")
    for index in range(0, len(parts), 2):
        parts[index] = link.sub(replaced, parts[index])
    # A link whose text is code is split at its text: its end is in the next part.
    return "".join(parts)


def _normal(path: str) -> str:
    found: list[str] = []
    for part in path.split("/"):
        if part == "..":
            found = found[:-1]
        elif part not in ("", "."):
            found.append(part)
    return "/".join(found)


def _on_site(path: str) -> str | None:
    """Return where a file of the repository is on the site; None if it is not a file that is moved."""
    moved = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
    if path in moved:
        return moved[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("benchmarks/results/"):
        return path
    return None


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    generated = pages()

    def below(folder: str) -> list[Any]:
        inside = [uri for uri in generated if uri.startswith(f"{folder}/") and not uri.endswith("index.md")]
        first = [f"{folder}/index.md"] if f"{folder}/index.md" in generated else []
        return [*first, *inside]

    lists: dict[str, list[Any]] = {kind.upper(): below(f"reference/{kind}") for kind in catalogue.KINDS}
    lists["API"] = below("api")
    lists["BENCHMARKS"] = below("benchmarks/results")
    lists["DECISIONS"] = ["decisions/index.md", *(f"decisions/{path.name}" for path in decisions())]

    def filled(items: Any) -> Any:
        if isinstance(items, list):
            return [filled(item) for item in items]
        if isinstance(items, dict):
            return {title: filled(item) for title, item in items.items()}
        return lists.get(items, items)

    config.nav = filled(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the measurements that pages link to."""
    from mkdocs.structure.files import File

    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to files outside docs/."""
    return rewritten(markdown, page.file.src_uri)
