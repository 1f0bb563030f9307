"""Optional packages: imported when a feature asks for them, with the install line in the error when absent."""

import importlib
from types import ModuleType

from seqloom.core.errors import ConfigError


def require(extra: str | None, module: str) -> ModuleType:
    """Import an optional package, or say how to install it.

    Args:
        extra: the extra of this project that brings it; None if none does and it is installed under its own name.
    Raises:
        ConfigError: the package is not installed, or not whole.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        wanted = f"'seqloom[{extra}]'" if extra else package
        raise ConfigError(
            f"this needs the package '{package}', which cannot be imported here ({error}); "
            f"install it with: pip install {wanted}"
        ) from error
