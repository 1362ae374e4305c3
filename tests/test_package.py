"""What installing and importing the package does to its surroundings, and what its pages promise."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import art_aft

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def requirements():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line for line in config["options"]["install_requires"].splitlines() if line and line[0] != "#"]
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


@pytest.mark.parametrize(
    ("version", "allowed"),
    [("3.2.7", False), ("3.3.0", True), ("3.4.0", False), ("3.5.0", False), ("3.5.1", False), ("3.6.0", True)],
)
def test_torchattacks_releases_that_downgrade_requests_are_left_out(requirements, version, allowed):
    assert requirements["torchattacks"].contains(version) is allowed


def test_what_art_forgets_to_declare_is_declared_here(requirements):
    assert "packaging" in requirements


def test_the_constraints_satisfy_the_requirements(requirements):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = [Requirement(line) for line in lines]
    for name, specifier in requirements.items():
        versions = [next(iter(pin.specifier)).version for pin in pinned if pin.name == name]
        assert versions, name
        assert all(specifier.contains(version) for version in versions), name


def test_importing_loads_what_is_asked_for_and_seeds_nothing():
    """The package itself loads nothing, its names load neither torchvision nor matplotlib."""
    program = (
        "import sys, art_aft\n"
        "assert not {'numpy', 'torch', 'art'} & set(sys.modules)\n"
        # scikit-learn draws from the random module when it is imported; that is not ours to mend.
        "import random, numpy, torch, sklearn.datasets\n"
        "states = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())\n"
        "before = states()\n"
        "from art_aft import *\n"
        "assert evaluate is art_aft.evaluate is art_aft.metrics.evaluate\n"
        "assert {'evaluate', 'defences', '__version__'} <= set(dir(art_aft))\n"
        "assert not hasattr(art_aft, 'np') and not hasattr(art_aft, 'cli') and not hasattr(art_aft, '__wrapped__')\n"
        "import art_aft.cli.main\n"
        "assert states() == before\n"
        "print(sorted({'torchvision', 'matplotlib', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_is_what_python_m_runs():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options.entry_points"]["console_scripts"].strip() == "art-aft = art_aft.__main__:main"


def test_no_file_imports_torchvision():
    files = [file for folder in ("art_aft", "examples") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    assert [file.name for file in files if "import torchvision" in file.read_text()] == []


def test_the_files_of_the_package_stay_small():
    long = {file.name: len(file.read_text().splitlines()) for file in (ROOT / "art_aft").rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 310} == {}


def test_the_examples_stay_short():
    lengths = {file.name: len(file.read_text().splitlines()) for file in (ROOT / "examples").glob("*.py")}
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines >= 40} == {}


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchor(heading):
    """The anchor that a heading of a Markdown page has."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 7000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    # Without code blocks, which have brackets of their own.
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert f"#{fragment}" in [anchor(heading) for heading in headings], link


def test_the_citation_is_of_this_version():
    assert f"\nversion: {art_aft.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_examples_of_contributing_keep_the_contracts(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = re.findall(r"`art_aft/\w+/(\w+)\.py`\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    names = [name for name, _ in examples]
    assert names == ["stripe", "strong_decay", "weight_norm"]
    for name, code in examples:
        assert len(code.splitlines()) < 40
        (tmp_path / f"{name}.py").write_text(code)
    contracts = ("attacks/test_contract.py", "defences/test_defences.py", "detection/test_detectors.py")
    program = (
        f"import sys, pytest, {', '.join(names)}\n"
        f"sys.exit(pytest.main(['-v', '-p', 'no:cacheprovider', '-k', {' or '.join(names)!r}, *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", program, *(str(ROOT / "tests" / contract) for contract in contracts)]
    places = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout
    for contract in contracts:  # each has picked up its example
        assert f"tests/{contract} ." in done.stdout, done.stdout
