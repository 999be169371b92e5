"""Fill Jinja templates of HTML pages; plain text is escaped."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mergeability.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, **values: Any) -> Markup:
    """Fill a template; escape text, but not `Markup`.

    Args:
        name: of the file in `templates/`, without its suffix.
        values: what the template refers to.

    Returns:
        The HTML.
    """
    return Markup(_environment().get_template(f"{name}.html.j2").render(**values))


def macro(name: str, *values: Any) -> Markup:
    """Return the HTML of a macro in `templates/parts.html.j2`."""
    return Markup(getattr(_environment().get_template("parts.html.j2").module, name)(*values).strip())


def resources(names: tuple[str, ...]) -> Markup:
    """Concatenate files of this package, such as style sheets, without escaping them."""
    package = files("mergeability.reporting")
    return Markup("\n".join(package.joinpath(name).read_text(encoding="utf-8") for name in names))
