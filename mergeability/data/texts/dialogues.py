"""Read sentences of chatterbot-corpus, a collection of dialogues in many languages (BSD licence)."""

from importlib import resources

import yaml

from mergeability.data.texts.subject import optional_package


def dialogue_sentences(language: str) -> dict[str, list[str]]:
    """Return a mapping from each topic to the sentences of its dialogues in one language.

    The topics are sorted by file name; the sentences of a topic keep the order of the file.

    Args:
        language: name of a folder of the corpus, such as "english".

    Raises:
        UserError: chatterbot-corpus is not installed.
    """
    package = optional_package("chatterbot_corpus", "chatterbot-corpus")
    folder = resources.files(package) / "data" / language
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".yml")), key=lambda file: file.name
    )
    return {file.name.removesuffix(".yml"): _sentences(file.read_text(encoding="utf-8")) for file in files}


def _sentences(content: str) -> list[str]:
    # An answer may be a number, which YAML does not read as text.
    return [str(text) for dialogue in yaml.safe_load(content)["conversations"] for text in dialogue if text]
