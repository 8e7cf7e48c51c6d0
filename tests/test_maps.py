"""The docstring of a package with many modules is a map of them."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest


@pytest.mark.parametrize("package", ["amptune.analyze", "amptune.core", "amptune.tune"])
def test_the_map_of_a_package_names_its_modules(package: str) -> None:
    found = importlib.import_module(package)
    modules = {each.name for each in pkgutil.iter_modules(found.__path__)}
    missing = modules - set(re.findall(r"\w+", str(found.__doc__)))
    assert not missing, f"name them in the docstring of {package}, beside those that they belong to"
