"""The page "Your first scan": its code runs as it stands."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch

from art_aft.cli import main as cli

PAGE = (Path(__file__).parent.parent / "docs" / "first_scan.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("first_scan")
    (place / "net.py").write_text(BLOCKS[0])
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(place)
        runpy.run_path("net.py", run_name="__main__")
    return place


def test_the_scan_of_the_page_points_at_the_label_of_the_trigger(folder, monkeypatch):
    monkeypatch.chdir(folder)
    command = re.search(r"^art-aft (scan .*)$", PAGE, flags=re.MULTILINE)[1].split()
    # The fast detectors alone: the page has what all of them say.
    assert cli.main([*command, "--effort", "fast", "--quiet"]) in (1, 2)
    evidence = {each["detector"]: each["label"] for each in json.loads(Path("report.json").read_text())["evidence"]}
    assert evidence["agreement"] == 3


def test_the_weights_of_the_page_load_as_it_says(folder, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    import net

    save_file(net.build().state_dict(), "purified.safetensors")  # what `purify` writes is tested with the shell
    exec(BLOCKS[1], {})


def test_the_python_of_the_page_names_what_there_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    *setup, _, _, purify = BLOCKS[2].strip().splitlines()  # without the scan and the purification, which take long
    names = {}
    exec("\n".join([*setup, purify.partition("(clean[")[0]]), names)
    assert names["classifier"].nb_classes == 10
    assert not names["purified"].horizontal_flip
