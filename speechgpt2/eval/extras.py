"""Import of the evaluation extra: packages that only judges need, fetched when a judge is first asked for.

`speechgpt2[eval]` brings pesq, pystoi, pocketsphinx and matplotlib. Nothing here is imported by the models.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from speechgpt2.errors import UserError


def need(module: str) -> ModuleType:
    """The package `module`. Errors: `UserError` that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some greet with notices about their own packaging
            return importlib.import_module(module)
    except ImportError as error:
        missing = f" (it lacks {error.name})" if error.name not in (None, module) else ""
        raise UserError(f"{module} is not installed{missing}; run: pip install 'speechgpt2[eval]'") from None
