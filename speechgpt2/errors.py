"""The one exception that is meant to be read by people.

Anything a user can cause (a missing file, a folder that is no checkpoint, an unknown key) raises `UserError` with one
line that says what is wrong and what to do. The command line prints that line and exits with 2; a server turns it
into the protocol's error. Every other exception is a bug in the project.
"""


class UserError(ValueError):
    """What was asked cannot be done; the message is one clear line for the person who asked."""


class MissingDependency(UserError):
    """An optional package, library or program is not installed; the message says how to install it."""
