"""Optional packages: imported when a feature asks for them, with the install line in the error when absent."""

import importlib
from types import ModuleType

from seqloom.core.errors import ConfigError


def require(extra: str, module: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this needs the package '{module.split('.')[0]}', which is not installed; "
            f"install it with: pip install 'seqloom[{extra}]'"
        ) from error
