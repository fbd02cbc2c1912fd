"""The exception and the warnings whose messages are for users.

Whatever a user can cause (a missing file, a folder that is not a checkpoint, an unknown key) raises `UserError` with
one line that says what is wrong and what to do. The command line prints that line and exits with status 2. A server
turns it into the protocol's error. Every other exception is a bug in the project. `FileWarning` is for a file of which
only a part can be used; the command line prints it, too.
"""


class UserError(ValueError):
    """The request cannot be fulfilled. The message is one line for the user."""


class MissingDependency(UserError):
    """An optional package, library or program is not installed; the message says how to install it."""


class FileWarning(UserWarning):
    """A file, or a part of it, cannot be used, and the program goes on. The message is one line for the user."""


class SpeechWarning(UserWarning):
    """The speech that the model made cannot be that of the text. The message is one line for the user."""
