"""The page that a reader of the paper opens first names every module, and nothing that isn't there."""

import importlib
import pkgutil
import re

import fusion_core

ROWS = [line.split("|")[1:-1] for line in (fusion_core.__doc__ or "").splitlines() if line.startswith("| ")][1:]


def quoted(cell):
    return re.findall(r"`([A-Za-z_]+)`", cell)


def test_every_module_is_on_the_page():
    named = {module for _, modules, _ in ROWS for module in quoted(modules)}
    assert named == {module.name for module in pkgutil.iter_modules(fusion_core.__path__)}


def test_every_name_on_the_page_is_in_one_of_its_modules():
    for _, modules, names in ROWS:
        found = [importlib.import_module(f"fusion_core.{module}") for module in quoted(modules)]
        missing = [name for name in quoted(names) if not any(hasattr(module, name) for module in found)]
        assert quoted(names)
        assert not missing


def test_every_exported_name_has_a_docstring_that_says_what_it_is():
    for module in pkgutil.walk_packages(fusion_core.__path__, "fusion_core."):
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", []):
            value = getattr(loaded, name)
            assert not callable(value) or not hasattr(value, "__name__") or (value.__doc__ or "").strip(), name
