"""Import of optional packages: what only an extra of the package installs is imported when it is first used."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from speechgpt2.errors import MissingDependency


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of this package installs.

    Raises:
        MissingDependency: The module, or something that it imports, is not installed. The message says what to install.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some packages warn about their own packaging
            return importlib.import_module(module)
    except ImportError as error:
        missing = f" (it lacks {error.name})" if error.name not in (None, module) else ""
        raise MissingDependency(f"{module} is not installed{missing}; run: pip install 'speechgpt2[{extra}]'") from None
