"""Optional dependencies, and the one message for a missing one."""

from __future__ import annotations

import importlib
from types import ModuleType

from semhitok.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed; run: pip install 'semhitok[{extra}]'"
        ) from error
