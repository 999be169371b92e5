"""List the text subjects, one for each module of `subjects`."""

import pkgutil
from importlib import import_module

from mergeability.data.texts import subjects
from mergeability.data.texts.subject import Subject
from mergeability.errors import UserError

# A new subject is available as soon as its file exists.
SUBJECTS = tuple(sorted(one.name for one in pkgutil.iter_modules(subjects.__path__)))


def find_subject(name: str) -> Subject:
    """Return the text subject that has the given name.

    Args:
        name: a name in `SUBJECTS`.

    Raises:
        UserError: the name is unknown.

    Examples:
        >>> from mergeability.data.texts import find_subject
        >>> find_subject("brackets").classes
        ('balanced', 'unclosed', 'unopened', 'crossed')
    """
    if name not in SUBJECTS:
        raise UserError(f"Expected a text subject, one of {', '.join(SUBJECTS)}, got {name!r}.")
    return import_module(f"{subjects.__name__}.{name}").SUBJECT
