"""What the public names say of themselves."""

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest

import art_aft
from art_aft.attacks import TRIGGERS
from art_aft.defences import DEFENCES
from art_aft.detection import DETECTORS

ROOT = Path(__file__).parent.parent
MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(art_aft.__path__, "art_aft.")
    if not module.name.endswith("__main__")
]


def public():
    """Every public class and function of the package, by its full name."""
    for module in MODULES:
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                yield f"{module.__name__}.{name}", value


PUBLIC = dict(public())
#: Commands of the shell: their functions have the same two arguments, and the help text tells the rest.
COMMANDS = re.compile(r"art_aft\.cli\.")
FEW = 4


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(PUBLIC[name])])
def test_a_public_class_documents_its_whole_signature(name):
    value = PUBLIC[name]
    assert value.__doc__
    # A report has the fields of those that it extends.
    documentation = "".join(
        inspect.cleandoc(base.__doc__ or "") for base in value.__mro__ if "art_aft" in base.__module__
    )
    if issubclass(value, (Exception, dict)) or "__init__" not in "".join(vars(value)) or inspect.isabstract(value):
        return
    parameters = inspect.signature(value.__init__).parameters.values()
    named = [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [each for each in named if not each.startswith("_") and f":param {each}:" not in documentation]
    assert missing == []


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(PUBLIC[n]) and not COMMANDS.match(n)])
def test_a_public_function_documents_its_arguments(name):
    documentation = inspect.getdoc(PUBLIC[name]) or ""
    assert documentation
    parameters = list(inspect.signature(PUBLIC[name]).parameters)
    # A sentence says all of a function with few arguments; where arguments are listed, none may be missing.
    if ":param" in documentation or len(parameters) > FEW:
        assert [each for each in parameters if f":param {each}:" not in documentation] == []


def test_at_least_ten_public_functions_show_a_runnable_example():
    finder = doctest.DocTestFinder(recurse=False)
    examples = {name for name, value in PUBLIC.items() if any(test.examples for test in finder.find(value, name))}
    assert len(examples) >= 10


FORBIDDEN = re.compile(
    r"\b(dear|dearer|dearest|infections?|mirror(s|ed|ing)?|scenes?|taught|carried over|alarms?)\b",
    re.IGNORECASE,
)
FALSE_ALARM = re.compile(r"false[ -]alarms?", re.IGNORECASE)
#: Names of settings, also of those that are gone.
CODE = re.compile(r"`[^`\n]*`")


def sources():
    for folder, ending in (("art_aft", "*.py"), ("docs", "*.md"), ("examples", "*.py")):
        yield from sorted((ROOT / folder).rglob(ending))
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_the_fields(path):
    text = CODE.sub("", FALSE_ALARM.sub("", path.read_text(encoding="utf-8")))
    found = [line.strip() for line in text.splitlines() if FORBIDDEN.search(line)]
    assert found == []


def test_its_page_names_every_setting_of_a_defence():
    page = (ROOT / "docs" / "defences.md").read_text(encoding="utf-8")
    shared = re.search(r"^Settings that several defences have.*?\n\n.*?\n\n", page, re.DOTALL | re.MULTILINE)[0]
    for name, defence in DEFENCES.items():
        own = (ROOT / "docs" / "defences" / f"{name}.md").read_text(encoding="utf-8")
        named = re.findall(r"`(\w+)", own + shared)
        assert [setting for setting in defence.params if setting not in named] == [], name


def test_its_page_names_every_setting_of_a_trigger():
    for name, trigger in TRIGGERS.items():
        page = (ROOT / "docs" / "attacks" / f"{name}.md").read_text(encoding="utf-8")
        named = re.findall(r"`(\w+)", page)
        settings = [each for each in inspect.signature(trigger).parameters if each != "layout"]
        assert [setting for setting in settings if setting not in named] == [], name


METHODS = [ROOT / "docs" / "defences" / f"{name}.md" for name in DEFENCES]
METHODS += [ROOT / "docs" / "attacks" / f"{name}.md" for name in TRIGGERS]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_the_page_of_a_method_has_its_parts(path):
    page = path.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert [part for part in ("When it fails", "Settings", "Paper", "Measured") if part not in headings] == []
    assert "\n```\n" in page.partition("## When it fails")[0], "a formula"
    assert f"<!-- rows: {path.stem} -->\n| " in page
    index = (ROOT / "docs" / f"{path.parent.name}.md").read_text(encoding="utf-8")
    assert f"[`{path.stem}`]({path.parent.name}/{path.name})" in index


THRESHOLDS = {name: detector.threshold for name, detector in DETECTORS.items()}
EVIDENCE = [ROOT / "docs" / "detectors" / f"{name}.md" for name in (*THRESHOLDS, "agreement")]


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.stem)
def test_the_page_of_a_detector_has_its_parts(path):
    page = path.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert headings == ["Null and threshold", "When it fails", "Settings", "Paper", "Measured"]
    idea, formula, _ = page.partition("\n```\n")
    assert formula, "a formula"
    # The idea comes first, in three sentences.
    assert len(re.findall(r"[.](?=\s)", idea.split("\n\n")[1] + "\n")) == 3
    assert f"<!-- rows: {path.stem} -->\n| " in page
    guide = (ROOT / "docs" / "detection.md").read_text(encoding="utf-8")
    assert f"[`{path.stem}`](detectors/{path.name})" in guide


def test_the_page_of_a_detector_says_its_threshold():
    for name, threshold in THRESHOLDS.items():
        page = (ROOT / "docs" / "detectors" / f"{name}.md").read_text(encoding="utf-8")
        about = page.partition("## Null and threshold")[2].partition("## ")[0]
        assert re.search(rf"threshold[^.]* is {threshold}\b", " ".join(about.split())), name


def test_the_measured_rows_are_those_of_the_files(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.setattr(sys, "argv", ["measured.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "measured.py"), run_name="__main__")
    assert (ended.value.code, capsys.readouterr().out) == (0, "nothing out of date\n")


def test_the_page_of_the_api_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"auto(?:class|function):: art_aft\.(\w+)", page)) == sorted(art_aft.__all__)
    rooms = {name.partition(".")[0] for _, name, _ in pkgutil.iter_modules(art_aft.__path__)}
    listed = re.findall(r"^   art_aft\.(\w+)$", page, flags=re.MULTILINE)
    # The shell is not called from Python, and the public names come from the other rooms.
    assert sorted(listed) == sorted(rooms - {"cli", "public", "check_types", "__main__"})
