"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Say in one sentence what was expected, what came and what to do.

    The commands show its text without a traceback and exit with a non-zero code. Anything else that is
    raised is a defect of this package and keeps its traceback.
    """
