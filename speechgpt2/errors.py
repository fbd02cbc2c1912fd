"""The exception whose message is for users.

Whatever a user can cause (a missing file, a folder that is no checkpoint, an unknown key) raises `UserError` with one
line that says what is wrong and what to do. The command line prints that line and exits with status 2. A server turns
it into the protocol's error. Every other exception is a bug in the project.
"""


class UserError(ValueError):
    """The request cannot be fulfilled. The message is one line for the user."""


class MissingDependency(UserError):
    """An optional package, library or program is not installed; the message says how to install it."""
