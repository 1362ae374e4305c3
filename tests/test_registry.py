"""Registries map names to what was registered, and find new files by themselves."""

import sys

import pytest

from art_aft.defences import DEFENCES
from art_aft.registry import Registry


@pytest.fixture
def animals():
    registry = Registry("animal")
    registry.register("lion")("Panthera leo")
    registry.register("bear")("Ursus arctos")
    return registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that has a registry of its own and no entry yet."""
    name = "zoo_of_test_registry"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("from art_aft.registry import Registry\nZOO = Registry('animal')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_it_is_a_mapping(animals):
    assert dict(animals) == {"lion": "Panthera leo", "bear": "Ursus arctos"}
    assert list(animals) == ["lion", "bear"]
    assert len(animals) == 2
    assert "lion" in animals
    assert "wolf" not in animals


def test_the_decorator_returns_its_object(animals):
    class Wolf:
        pass

    assert animals.register("wolf")(Wolf) is Wolf
    assert animals["wolf"] is Wolf


def test_an_unknown_name_lists_the_known_ones(animals):
    with pytest.raises(ValueError, match=r"unknown animal 'wolf', expected one of: bear, lion$"):
        animals["wolf"]


def test_get_returns_its_default_for_an_unknown_name_as_every_mapping(animals):
    assert animals.get("lion") == "Panthera leo"
    assert animals.get("wolf", "none") == "none"


def test_a_taken_name_is_refused_and_keeps_its_object(animals):
    with pytest.raises(ValueError, match=r"^name: animal 'lion' is registered already"):
        animals.register("lion")("Puma concolor")
    assert animals["lion"] == "Panthera leo"


def test_a_taken_name_is_refused_for_an_equal_object_too(animals):
    animals.register("wolf")([])
    with pytest.raises(ValueError, match=r"^name: animal 'wolf' is registered already"):
        animals.register("wolf")([])


def test_the_same_object_may_come_twice(animals):
    entry = object()
    animals.register("wolf")(entry)
    assert animals.register("wolf")(entry) is entry
    assert len(animals) == 3


def test_registries_are_independent(animals):
    assert dict(Registry("plant")) == {}
    assert len(animals) == 2


def test_a_new_file_is_enough_for_a_new_entry(package):
    (package / "wolf.py").write_text(
        f"from {package.name} import ZOO\n@ZOO.register('wolf')\nclass Wolf:\n    legs = 4\n"
    )
    zoo = __import__(package.name)
    assert dict(zoo.ZOO) == {}
    zoo.ZOO.discover(package.name, zoo.__path__)
    assert list(zoo.ZOO) == ["wolf"]
    assert zoo.ZOO["wolf"].legs == 4


def test_discovering_twice_changes_nothing(package):
    (package / "wolf.py").write_text(f"from {package.name} import ZOO\nZOO.register('wolf')(object())\n")
    zoo = __import__(package.name)
    zoo.ZOO.discover(package.name, zoo.__path__)
    before = dict(zoo.ZOO)
    zoo.ZOO.discover(package.name, zoo.__path__)
    assert dict(zoo.ZOO) == before


def test_a_broken_file_is_not_passed_over(package):
    (package / "broken.py").write_text("raise RuntimeError('broken on purpose')\n")
    zoo = __import__(package.name)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        zoo.ZOO.discover(package.name, zoo.__path__)


def test_another_package_adds_a_defence_by_an_entry_point(installed):
    code = """
        from art_aft.defences.base import Defence

        class Nothing(Defence):
            def __init__(self, classifier, *, seed=0):
                super().__init__(classifier, seed=seed)

            def _purify(self, classifier, images, run): ...
        """
    installed(DEFENCES, "other_package", code, "nothing = other_package:Nothing")
    assert list(DEFENCES["nothing"].params) == ["seed"]
    assert "aft" in DEFENCES


def test_a_package_that_cannot_be_loaded_is_logged_and_left_out(installed, caplog):
    before = set(DEFENCES)
    failing = "raise RuntimeError('broken on purpose')"
    installed(DEFENCES, "other_package", failing, "broken = other_package:Nothing")
    assert set(DEFENCES) == before
    assert "defence 'broken' of other_package:Nothing cannot be loaded: broken on purpose" in caplog.text


def test_a_taken_name_stays_with_its_owner(installed, caplog):
    owner = DEFENCES["aft"]
    installed(DEFENCES, "other_package", "Other = object", "aft = other_package:Other")
    assert DEFENCES["aft"] is owner
    assert "'aft' is registered already" in caplog.text
