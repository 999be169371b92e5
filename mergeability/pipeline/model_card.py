"""Write the model card of a saved merge, `README.md`, with its method, scale and parents."""

import json
import re
from collections.abc import Mapping
from typing import Any

NAME = "README.md"


def model_card(card: Mapping[str, Any], opens: str | None) -> str:
    """Format the card of a merge as Markdown, with metadata for the Hugging Face hub.

    Args:
        card: result of `merge_card`, with the names and hash added by `save_merge`.
        opens: the library that can open the folder, "transformers" or "open_clip"; None if unknown.

    Returns:
        Markdown: recipe, parents, hashes, accuracies and what was left out.
    """
    parents = list(card["parents"].items())
    lines = [
        "---",
        *([f"library_name: {opens}"] if opens else []),
        "tags:",
        "- merge",
        "- mergeability",
        "---",
        "",
    ]
    lines += [f"# {_plain(' + '.join(name for name, _ in parents))}", ""]
    version = card["versions"]["mergeability"]
    lines += [f"A merge of {len(parents)} fine-tuned models of one base, made by mergeability {version}."]
    lines += ["", "## Recipe", "", "```json", json.dumps(card["merge"], indent=2), "```", ""]
    lines += [f"Scale of the merged task vector: {card['alpha']:g} ({_plain(card['alpha_from'])}).", ""]
    lines += ["## Models", "", "| model | SHA-256 |", "|---|---|"]
    lines += [
        f"| {_plain(name)} | `{sha256}` |" for name, sha256 in [("base", card["base_sha256"]), *parents]
    ]
    lines += [f"| this file | `{card['sha256']}` |"]
    if card.get("accuracies"):
        lines += ["", "## Accuracy", "", "| task | merge | fine-tuned model |", "|---|---|---|"]
        lines += [
            f"| {_plain(task)} | {_number(of_task.get('accuracy'))} | {_number(of_task.get('finetuned_accuracy'))} |"
            for task, of_task in card["accuracies"].items()
        ]
    if card.get("left_out"):
        lines += ["", "## Left out", "", *(f"- {_plain(one)}" for one in card["left_out"])]
    if card.get("note"):
        lines += ["", _plain(card["note"])]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Escape characters with a meaning in Markdown, HTML or tables."""
    text = re.sub(r"[\x00-\x1f\x7f]", " ", text)
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
