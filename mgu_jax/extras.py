"""Packages beyond the core dependencies, imported when they are first needed."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a module that belongs to an extra.

    Raises:
        ImportError: it is not installed; the sentence names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module} is needed here and not installed: pip install 'mgu_jax[{extra}]'.", name=module
        ) from error
