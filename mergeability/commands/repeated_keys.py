"""Find duplicate keys in mappings on the command line; Hydra would silently ignore all but the last."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from mergeability.errors import UserError


def refuse_repeated_keys(arguments: Sequence[str]) -> None:
    """Check that no mapping among the arguments has duplicate keys.

    Raises:
        UserError: a mapping has duplicate keys, such as `suite.models={a: x, a: y}`.
    """
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if not equals or "{" not in value:
            continue
        for keys in _mappings(argument):
            repeated = sorted({key for key in keys if keys.count(key) > 1})
            if repeated:
                raise UserError(
                    f"{option.lstrip('+~')} has {', '.join(map(repr, repeated))} twice. "
                    "Give each entry a different name."
                )


def _mappings(argument: str) -> Iterator[list[str]]:
    """Yield the keys of each mapping in an override; nothing if Hydra cannot parse it."""
    lexer = OverrideLexer(InputStream(argument))
    parser = OverrideParser(CommonTokenStream(lexer))
    for reader in (lexer, parser):
        reader.removeErrorListeners()
        reader.addErrorListener(HydraErrorListener())
    try:
        nodes: list[Any] = [parser.override()]
    except HydraException:
        # Hydra reports this error itself.
        return
    while nodes:
        node = nodes.pop()
        children = list(node.getChildren())
        if isinstance(node, OverrideParser.DictContainerContext):
            pairs = [one for one in children if isinstance(one, OverrideParser.DictKeyValuePairContext)]
            keys: list[Any] = [next(pair.getChildren()) for pair in pairs]
            yield [key.getText().strip() for key in keys]
        nodes += [child for child in children if hasattr(child, "getChildren")]
