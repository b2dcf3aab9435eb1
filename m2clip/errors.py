"""The errors a user can cause, each told in one line."""


class InputError(ValueError):
    """Bad input: the message says in one line what was wrong and what to do about it."""
