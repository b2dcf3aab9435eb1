"""The errors a user can cause, each told in one line."""


class InputError(ValueError):
    """Bad input: the message says in one line what was wrong and what to do about it."""


class LostProcessError(RuntimeError):
    """Another process of the group is gone or hangs, so that this one cannot go on; the message names it.

    Attributes:
        silent: whether another process tells the same, so that this one need not.
        exit_code: what a program returns that ends with this error.
    """

    exit_code = 3

    def __init__(self, message: str, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class LostSourceError(RuntimeError):
    """A camera or an address that gave frames gives none any more; the message names it.

    Attributes:
        exit_code: what a program returns that ends with this error.
    """

    exit_code = 3


class Notice(UserWarning):
    """What a user should know although the work goes on; the message is one line.

    Attributes:
        facts: the same as JSON values by field.
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts
