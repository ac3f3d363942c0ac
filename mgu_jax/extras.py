"""Packages beyond the core dependencies, imported when they are first needed."""

import importlib
import importlib.util
from types import ModuleType


def _missing(module: str, extra: str) -> ImportError:
    return ImportError(f"{module} is needed here and not installed: pip install 'mgu_jax[{extra}]'.", name=module)


def require(module: str, extra: str) -> ModuleType:
    """Import a module that belongs to an extra.

    Raises:
        ImportError: it is not installed; the sentence names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(module, extra) from error


def look_for(modules: tuple[str, ...], extra: str) -> None:
    """Raise as ``require`` does, without importing, so that a run learns before it begins what it would lack later."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package that should hold it
            found = None
        if found is None:
            raise _missing(module, extra)
