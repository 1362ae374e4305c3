"""The reports that the commands write for people: what they say of where they come from is true."""

import html
import json
import re
import zipfile
from io import BytesIO

import numpy as np
import pytest

from art_aft.classifiers import storage
from art_aft.cli import main as cli
from art_aft.detection.scan import BackdoorScan
from art_aft.experiments.reports.parts import code
from art_aft.runtime.files import write_text

#: Names of class folders, of which one is hostile.
FOLDERS = [f"{label} <b>{'&' * label}" for label in range(10)]


@pytest.fixture
def there(infected, tmp_path, monkeypatch):
    """A folder with the infected model, and clean images as an array and as class folders."""
    monkeypatch.chdir(tmp_path)
    storage.save("suspect", infected.classifier, "wrn-10-1", facts={"victim": {"data": "digits"}})
    np.savez("clean.npz", x=infected.x[:60], y=infected.y[:60])
    return tmp_path


def folders(infected, path):
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(path, "w") as archive:
        for number, (pixels, label) in enumerate(zip(infected.x[:60, 0], infected.y[:60], strict=True)):
            buffer = BytesIO()
            image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(buffer, "png")
            archive.writestr(f"{FOLDERS[label]}/{number}.png", buffer.getvalue())


def blocks(page):
    """The command and the lines of Python on a page."""
    return [html.unescape(each) for each in re.findall(r"<pre><code>(.*?)</code></pre>", page.read_text(), re.DOTALL)]


@pytest.fixture
def brief(monkeypatch):
    """Have every scan run one detector, whatever the effort."""
    whole = BackdoorScan.__init__
    monkeypatch.setattr(
        BackdoorScan, "__init__", lambda self, *given, **more: whole(self, *given, **more, detectors=["last_layer"])
    )


@pytest.mark.parametrize("data", ["clean.npz", "clean.zip"])
def test_a_scan_says_how_to_repeat_it(infected, there, brief, capsys, data):
    if data == "clean.zip":
        folders(infected, there / data)
    (there / "names.txt").write_text("\n".join(FOLDERS))
    (there / "known.json").write_text('{"score": 0.5, "effort": "fast"}')
    words = ["scan", "suspect", "--data", data, "--output", "out/a b", "--effort", "fast", "--seed", "3", "--quiet"]
    words += ["--reference", "known.json", *(["--classes", "names.txt"] if data == "clean.zip" else [])]
    assert cli.main(words) == 1
    assert "written: out/a b.html" in capsys.readouterr().out
    page, report = there / "out" / "a b.html", json.loads((there / "out" / "a b.json").read_text())
    command, python = blocks(page)
    assert command == f"art-aft {' '.join(words)}".replace("out/a b", "'out/a b'")
    known = {}
    exec(python, known)
    again = known["report"]
    assert (again.score, again.targets) == (report["score"], tuple(report["targets"]))
    assert again.false_alarm_rate == report["false_alarm_rate"] == 0.5
    if data == "clean.zip":
        assert "0 &lt;b&gt;" in page.read_text()
        assert "<b>" not in page.read_text()


QUICK = ["--defence", "fine_tuning", "--no-horizontal-flip", "--set", "nb_epochs=1", "padding=0"]


def test_a_purification_says_how_to_repeat_it(there, capsys):
    words = ["purify", "suspect", "--data", "clean.npz", "--output", "out", "--quiet", *QUICK]
    assert cli.main(words) == 0
    assert "written: out.html" in capsys.readouterr().out
    command, python = blocks(there / "out.html")
    assert command == f"art-aft {' '.join(words)}"
    known = {}
    exec(python, known)
    stored = storage.load("out").classifier.model.state_dict()
    assert all((value == stored[name]).all() for name, value in known["purified"].model.state_dict().items())


def test_a_model_that_cannot_be_written_leaves_no_page_of_it(there, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    (there / "out.html").write_text("of an earlier model")
    monkeypatch.setattr(storage, "replacing_all", full)
    assert cli.main(["purify", "suspect", "--data", "clean.npz", "--output", "out", "--quiet", *QUICK]) == 2
    assert not list(there.glob("out*"))


COMPARE = ["compare", "--attack", "badnets", "--model", "wrn-10-1", "--recipe", "digits", "--epochs", "1", "--quiet"]
COMPARE += ["--defences", "fine_tuning", "--learning-rates", "0.02", "--set", "nb_epochs=1"]


def test_a_comparison_says_how_to_repeat_it(there, capsys):
    assert cli.main([*COMPARE, "--rows", "rows.json"]) == 0
    assert "written: rows.html" in capsys.readouterr().out
    command, python = blocks(there / "rows.html")
    assert command == f"art-aft {' '.join(COMPARE)} --rows rows.json"
    known = {}
    exec(python, known)
    rows = json.loads((there / "rows.json").read_text())
    assert [row["defence"] for row in rows] == ["none", "fine_tuning"]
    assert (known["row"]["acc"], known["row"]["asr"]) == (rows[1]["acc"], rows[1]["asr"])


def test_rows_do_not_end_where_the_page_goes(there, capsys):
    assert cli.main([*COMPARE, "--rows", "rows.html"]) == 2
    assert "--rows: got rows.html" in capsys.readouterr().err
    assert not (there / "rows.html").exists()


def test_json_is_all_of_the_standard_output(there, brief, capsys):
    for words, status in (
        (["scan", "suspect", "--data", "clean.npz", "--effort", "fast", "--output", "a"], 1),
        (["purify", "suspect", "--data", "clean.npz", "--output", "b", *QUICK], 0),
        ([*COMPARE, "--rows", "c.json"], 0),
    ):
        assert cli.main([*words, "--json", "--quiet"]) == status
        printed = capsys.readouterr()
        report = json.loads(printed.out)
        assert "written: " in printed.err
        if words[0] == "compare":
            assert report["rows"] == json.loads((there / "c.json").read_text())
        else:
            place = there / ("a.json" if words[0] == "scan" else "b.report.json")
            assert report == json.loads(place.read_text())


def test_an_error_leaves_no_json(there, capsys):
    assert cli.main(["scan", "missing", "--data", "clean.npz", "--json", "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "missing" in printed.err


def test_a_name_that_is_no_text_is_no_obstacle(tmp_path):
    """A file name may hold bytes that are no UTF-8; pages are written with them escaped."""
    write_text(tmp_path / "page.html", code("a\udcff"))
    assert "a\\udcff" in (tmp_path / "page.html").read_text()
