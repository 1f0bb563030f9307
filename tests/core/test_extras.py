"""A missing optional package ends in a line to type, not in a traceback."""

import math

import pytest

from seqloom.core.errors import ConfigError
from seqloom.core.extras import require


def test_an_installed_package_is_imported() -> None:
    assert require("any", "math") is math


def test_a_missing_package_is_named_with_the_line_to_install_it() -> None:
    with pytest.raises(ConfigError, match=r"'not_a_package'.*pip install 'seqloom\[data\]'"):
        require("data", "not_a_package.part")


def test_a_package_outside_the_extras_is_installed_under_its_own_name() -> None:
    with pytest.raises(ConfigError, match=r"pip install not_a_package$"):
        require(None, "not_a_package")
