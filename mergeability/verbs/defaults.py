"""Read the defaults of `compare`, `predict` and `merge` from the YAML files of `analyze.py`."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergeability.errors import UserError, did_you_mean, shown
from mergeability.members import files, fixed_set, members, read_member
from mergeability.merging.method import MergeMethod
from mergeability.verbs.annotations import RefusedError, signature, take, words

if TYPE_CHECKING:
    from mergeability.pipeline.request import ProfileSettings


def suite_options(name: str) -> dict[str, Any]:
    """Return the options of a suite with their defaults.

    Args:
        name: a member of `conf/suite`.

    Examples:
        >>> from mergeability.verbs.defaults import suite_options
        >>> suite_options("checkpoints")["warn_above"]
        0.5
    """
    return {name: value for name, value in members("suite")[name].items() if _is_default(name, value)}


def profile() -> "ProfileSettings":
    """Return the default options of profiles.

    Examples:
        >>> from mergeability.verbs.defaults import profile
        >>> profile().unlabelled
        64
    """
    return made(members("profile")["default"])


def method_called(name: str, options: Mapping[str, Any] | None = None) -> MergeMethod:
    """Create a merge method by name.

    Args:
        name: a member of `conf/merge`, such as "ties".
        options: values that replace those of its file.

    Returns:
        The method with the options of its file.

    Raises:
        UserError: the name or an option is unknown, or a value is invalid.

    Examples:
        >>> from mergeability.verbs.defaults import method_called
        >>> method_called("ties", {"density": 0.1})
        Ties(density=0.1, scope='global', agg='mean', alpha=1.0)
    """
    known = members("merge")
    if name not in known:
        raise UserError(
            f"There is no merge method {name!r}.{did_you_mean(name, known)} Methods: {', '.join(known)}."
        )
    own = known[name]
    for option in options or {}:
        if option not in own or option.startswith("_"):
            names = [one for one in own if not one.startswith("_")]
            raise UserError(
                f"{name} has no option {option!r}.{did_you_mean(option, names)} Its options: {', '.join(names)}."
            )
    return made({**own, **_taken(name, own["_target_"], options or {})})


def _taken(name: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the types that the method declares; methods outside this package check their own."""
    found = signature(target)
    declared = {} if found is None else found.arguments
    taken = dict(options)
    for option, value in options.items():
        # Python code may give objects.
        if option in declared and isinstance(value, str | float | int | None | Mapping | list | tuple):
            try:
                taken[option] = take(declared[option], value)
            except RefusedError:
                raise UserError(
                    f"Expected the option {option} of {name} to be {words(declared[option])}, got {shown(value)}."
                ) from None
    return taken


def published_methods() -> tuple[str, ...]:
    """Return the names of the methods compared in arXiv 2601.22285; none of them requires data.

    Examples:
        >>> from mergeability.verbs.defaults import published_methods
        >>> published_methods()
        ('average', 'ta', 'ties', 'dare', 'tsv', 'iso_c')
    """
    return fixed_set("merge", "paper")


def composed(group: str, name: str) -> dict[str, Any]:
    """Read a YAML file of `conf`, and the files that its list `defaults` names, for example `[clip_mini, _self_]`.

    Args:
        group: a folder of `conf`.
        name: name of a file in this folder, without `.yaml`.

    Returns:
        The options of the file.

    Examples:
        >>> from mergeability.verbs.defaults import composed
        >>> composed("model", "clip_mini_wide")["architecture"]["embed_dim"]
        64
    """
    own = dict(read_member(files(group)[name]))
    found: dict[str, Any] = {}
    for one in own.pop("defaults", ()):
        if isinstance(one, str) and one != "_self_":
            found = _overridden(found, composed(group, one))
    return _overridden(found, own)


def _overridden(options: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        name: _overridden(options[name], value)
        for name, value in by.items()
        if isinstance(value, Mapping) and isinstance(options.get(name), Mapping)
    }
    return {**options, **by, **inner}


def probed_images() -> int:
    """Return how many unlabelled images of each task a probe uses by default.

    Examples:
        >>> from mergeability.verbs.defaults import probed_images
        >>> probed_images()
        64
    """
    return int(composed("suite/base", "probed")["probe"])


def _is_default(name: str, value: Any) -> bool:
    """Return whether a value is one: neither missing nor to be filled in by a composition."""
    given = name in ("name", "model", "base", "models", "defaults") or name.startswith("_")
    return (
        not given and value is not None and not (isinstance(value, str) and value.startswith(("${", "???")))
    )


def made(options: Any) -> Any:
    """Instantiate nested `_target_` nodes, inner ones first.

    Args:
        options: options of a member; anything without `_target_` is returned as it is.

    Examples:
        >>> from mergeability.verbs.defaults import made
        >>> made({"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2})
        Fraction(1, 2)
    """
    if not isinstance(options, Mapping) or "_target_" not in options:
        return options
    module, _, attribute = options["_target_"].rpartition(".")
    given = {name: made(value) for name, value in options.items() if not name.startswith("_")}
    return getattr(import_module(module), attribute)(**given)
