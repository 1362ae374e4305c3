"""Optional packages that are missing."""

import sys

import pytest

from art_aft.runtime.extras import extra


@pytest.mark.parametrize(("module", "package"), [("matplotlib.figure", "matplotlib"), ("no_such_package", "no_such")])
def test_a_missing_package_is_named_with_its_extra(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    says = rf"^{package}.* is missing.*art-aft\[plots\]"
    with pytest.raises(ModuleNotFoundError, match=says) as caught, extra("plots"):
        __import__(module)
    assert caught.value.name == module


def test_what_is_there_is_imported_and_other_errors_pass():
    with extra("plots"):
        import json  # noqa: F401
    with pytest.raises(ValueError, match="other"), extra("plots"):
        raise ValueError("other")
