"""Optional packages, imported when they are first needed."""

import importlib
import importlib.util
from types import ModuleType


def _missing(module: str, extra: str) -> ImportError:
    install = f"in a clone of mgu_jax, pip install -e '.[{extra}]'"
    return ImportError(f"{module} is needed here and not installed: {install}.", name=module)


def require(module: str, extra: str) -> ModuleType:
    """The imported module, which belongs to an extra.

    Raises:
        ImportError: it is not installed; the sentence names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(module, extra) from error


def look_for(modules: tuple[str, ...], extra: str) -> None:
    """Raise ImportError as ``require`` does, without importing: a long run fails at its start, not at its end."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package that should contain it is missing
            found = None
        if found is None:
            raise _missing(module, extra)
