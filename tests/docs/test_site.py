"""The documentation site: every page is in its navigation, every link has a target, and the reference is complete."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


SITE = module("site_pages")
GENERATED = SITE.pages()
WRITTEN = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
PAGES = {**WRITTEN, **GENERATED}
NAVIGATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]


def leaves(items) -> list[str]:
    if isinstance(items, str):
        return [items]
    found = items.values() if isinstance(items, dict) else items
    return [leaf for item in found for leaf in leaves(item)]


def slug(title: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    own = re.search(r"\{ #(\S+) \}", title)
    if own:
        return own[1]
    text = re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()
    text = text.encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", text)


def anchors(text: str) -> set[str]:
    return {slug(line.lstrip("# ")) for line in text.splitlines() if re.match(r"#+ ", line)}


def links(text: str) -> list[str]:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_no_generated_page_is_committed():
    assert set(WRITTEN) & set(GENERATED) == set()
    ended = subprocess.run(["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        pytest.skip("no git")
    assert not [name for name in ended.stdout.splitlines() if name.removeprefix("docs/") in GENERATED]


def test_every_written_page_is_in_the_navigation_and_there():
    named = leaves(NAVIGATION)
    lists = [name for name in named if name.isupper()]
    assert sorted(lists) == sorted(
        [
            *("METRICS", "METHODS", "PENALTIES", "PREDICTORS", "PROTOCOLS", "TASKS", "MODELS", "SUITES"),
            *("API", "BENCHMARKS", "DECISIONS"),
        ]
    )
    assert [name for name in named if name not in PAGES and name not in lists] == []
    outside = {name for name in WRITTEN if not name.startswith("decisions/")} - set(named)
    assert outside == set()


def test_lists_of_the_navigation_are_filled():
    class Config:
        nav = NAVIGATION

    filled = leaves(SITE.on_config(Config()).nav)
    assert len(filled) == len(set(filled))
    assert set(filled) == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_has_a_target(name):
    """Of pages as the site has them; of written ones also as the repository has them, but for generated pages."""
    for link in links(SITE.rewritten(PAGES[name], name)):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = SITE._normal(f"{Path(name).parent.as_posix()}/{path}") if path else name
        if target.endswith(".md"):
            assert target in PAGES, f"{name}: {link}"
            assert not anchor or anchor in anchors(PAGES[target]), f"{name}: {link}"
        else:
            place = ROOT / target if target.startswith("benchmarks/") else DOCS / target
            assert place.is_file(), f"{name}: {link}"


def test_every_link_of_the_readme_has_a_target():
    found = [link for link in links((ROOT / "README.md").read_text()) if not link.startswith("http")]
    assert len(found) > 10
    for link in found:
        path, _, anchor = link.partition("#")
        target = ROOT / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_reference_to_the_api_has_a_target():
    exported = {name for names in SITE.public_names().values() for name in names}
    named = {
        name
        for text in PAGES.values()
        for name in re.findall(r"\]\[([\w.]+)\]", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    }
    assert len(named) > 50
    assert sorted(named - exported) == []


def test_there_is_a_page_for_every_member():
    for group, kind in (("metric", "metrics"), ("merge", "methods"), ("predictor", "predictors")):
        files = {
            path.stem for path in (ROOT / "conf" / group).glob("*.yaml") if "\n_target_:" in path.read_text()
        }
        pages = {Path(uri).stem for uri in GENERATED if uri.startswith(f"reference/{kind}/")} - {"index"}
        assert pages == files
    for group, kind in (("reg", "penalties"), ("model", "models"), ("suite", "suites")):
        files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert {Path(uri).stem for uri in GENERATED if uri.startswith(f"reference/{kind}/")} - {
            "index"
        } == files
    tasks = "".join(GENERATED[f"reference/tasks/{group}.md"] for group in ("rendered", "real", "texts"))
    assert all(f"## `{path.stem}` {{" in tasks for path in (ROOT / "conf/task").glob("*.yaml"))


def test_settings_have_their_comments():
    page = GENERATED["reference/settings.md"]
    assert "| `seed` | `0` | seed with which the models were fine-tuned |" in page
    assert "| `profile.samples` | `10` | calibration images of each task |" in page
    assert '| `training.optimizer` | `adamw` | "adamw", or "sgd" with momentum |' in page
    assert "hydra.run" not in page


@pytest.mark.parametrize(("title", "prefix", "group", "name"), SITE.SETTINGS)
def test_every_setting_has_a_meaning(title, prefix, group, name):
    found = list(SITE.settings(group, name))
    assert [key for key, _, meaning in found if not meaning] == []
    # The names at the start of lines in the file.
    lines = (ROOT / "conf" / group / f"{name}.yaml").read_text().splitlines()
    top = {line.partition(":")[0] for line in lines if re.match(r"[a-z]\w*:", line)}
    left_out = {"defaults", "hydra", "tracking", "analysis", "settings"}
    assert {key.partition(".")[0] for key, _, _ in found} >= top - left_out - {"progress"}
    assert len(found) > 3


def test_a_public_name_without_a_docstring_is_an_error(tmp_path, monkeypatch):
    package = tmp_path / "mergeability"
    package.mkdir()
    (package / "tools.py").write_text("def plain():\n    return 1\n")
    monkeypatch.setattr(SITE, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"mergeability\.tools\.plain has no docstring"):
        list(SITE._documented("mergeability", "tools"))


def test_the_glossary_is_that_of_the_report(tmp_path, monkeypatch):
    glossary = tmp_path / "glossary.md"
    monkeypatch.setattr(SITE, "GLOSSARY", glossary)
    assert SITE._glossary().startswith("# Glossary\n")
    glossary.write_text("## Task vector\n\nThe change.\n\n## Accuracy\n\nThe share.\n")
    page = SITE._glossary()
    assert page.index("## Accuracy\n\nThe share.") < page.index("## Task vector\n\nThe change.")


@pytest.mark.parametrize(
    ("uri", "link", "expected"),
    [
        ("decisions/0019.md", "../../benchmarks/results/a.json", "../benchmarks/results/a.json"),
        ("results.md", "decisions/0001.md", "decisions/0001.md"),
        ("changelog.md", "docs/decisions/0023.md", "decisions/0023.md"),
        ("benchmarks/results/metrics.md", "../../README.md", "../../index.md"),
        ("guides/x.md", "https://a.b/c.md", "https://a.b/c.md"),
    ],
)
def test_links_out_of_docs_are_rewritten(uri, link, expected):
    assert (
        SITE.rewritten(f"see [`x`]({link}) and `[y]({link})`", uri)
        == f"see [`x`]({expected}) and `[y]({link})`"
    )


def test_pictures_are_small():
    pictures = [path for path in (DOCS / "images").iterdir() if path.suffix in (".png", ".svg")]
    assert {path.name for path in pictures} >= {"report.png", "pairs.svg", "methods.svg", "metric.svg"}
    assert all(path.stat().st_size < 150_000 for path in pictures)


def test_figures_are_drawn_from_the_files_of_a_run(tmp_path, monkeypatch):
    rows = ["task_a,task_b,task_vector_cosine_similarity,norm_acc_tsv,norm_acc_ties,norm_acc_tsv_a"]
    rows += ["cars,dtd,0.1,0.9,0.8,0.9", "cars,svhn,0.2,0.7,0.6,0.9", "dtd,svhn,0.4,0.8,0.5,0.9"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    figures = module("figures")
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path), "--out", str(tmp_path)])
    figures.main()
    pairs, methods, metric = (
        (tmp_path / f"{name}.svg").read_text() for name in ("pairs", "methods", "metric")
    )
    assert pairs.count(">0.90<") == 2  # both halves of the matrix
    assert methods.count("<circle") == 6
    assert ">ties<" in methods
    assert "tsv_a" not in methods
    # By hand: r of (0.1, 0.2, 0.4) and (0.9, 0.7, 0.8) is -1/100 / sqrt(14/300 · 2/100).
    assert "r = -0.33" in metric
    assert metric.count("<circle") == 3


@pytest.mark.slow
def test_the_site_builds():
    if not shutil.which("make"):
        pytest.skip("no make")
    ended = subprocess.run(["make", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert len(list((ROOT / "site").rglob("index.html"))) > 180
