"""Errors that are meant for users: their message says what is wrong, with which value, and what to do."""


class UserError(Exception):
    """Base of all errors whose message alone helps; scripts print it without a traceback."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says how to get it."""


class InputError(UserError, ValueError):
    """A value that a user gave is wrong."""
