"""What visitors of the repository read: changelog, citation, policies and forms are complete and state facts only."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mergeability import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
POLICIES = ["SECURITY.md", "CODE_OF_CONDUCT.md"]


def sections() -> dict[str, str]:
    """Split the changelog into versions."""
    parts = re.split(r"^## (.*)$", CHANGELOG, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_changelog_begins_with_what_is_unreleased_and_knows_the_version():
    titles = list(sections())
    assert titles[0] == "[Unreleased]"
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\]( - \d{4}-\d{2}-\d{2})?", title)[1] for title in titles[1:]]
    assert versions[0] == __version__
    assert versions == sorted(versions, key=lambda one: [int(part) for part in one.split(".")], reverse=True)


@pytest.mark.parametrize("title", sections())
def test_every_change_is_of_a_known_kind(title):
    kinds = re.findall(r"^### (.*)$", sections()[title], re.MULTILINE)
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    assert kinds == [kind for kind in order if kind in kinds]
    before_the_first = sections()[title].split("### ")[0]
    assert "- " not in before_the_first


def test_the_citation_states_version_licence_and_paper():
    assert (CITATION["version"], CITATION["license"]) == (__version__, PROJECT["license"])
    paper = CITATION["references"][0]
    assert paper["url"] == "https://arxiv.org/abs/2601.22285"
    assert [one["family-names"] for one in paper["authors"]] == ["Zhou", "Zhao", "Yu", "Rodolà"]
    # A repository or a homepage is named once the project has one in pyproject.toml, too.
    urls = PROJECT.get("urls", {})
    assert ("repository-code" in CITATION) == ("Repository" in urls)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_name_a_private_way_and_no_address_that_nobody_reads(name):
    text = (ROOT / name).read_text()
    assert "*Security → Report a vulnerability*" in text
    assert not re.search(r"\w@\w|example\.com|TODO|\[insert|<[a-z-]+>", text, re.IGNORECASE)


@pytest.mark.parametrize("form", [one for one in FORMS if one.name != "config.yml"], ids=lambda one: one.stem)
def test_every_form_asks_for_something_under_distinct_names(form):
    fields = [field for field in yaml.safe_load(form.read_text())["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_files_that_forms_and_policies_name_are_there():
    texts = [path.read_text() for path in [*FORMS, *(ROOT / name for name in POLICIES)]]
    texts.append((ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text())
    named = {name for text in texts for name in re.findall(r"\b[A-Z_]+\.md\b|\btests/\w+", text)}
    assert {"SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/fuzz"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
