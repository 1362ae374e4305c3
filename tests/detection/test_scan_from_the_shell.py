"""`art-aft scan`, its report as JSON, and its picture."""

import json
from functools import partial
from io import StringIO

import numpy as np
import pytest
from helpers import TinyNet
from tqdm.auto import tqdm

from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli import main as cli
from art_aft.detection.base import Evidence
from art_aft.detection.picture import perturbation_picture, scan_picture
from art_aft.detection.report import ScanReport
from art_aft.detection.scan import BackdoorScan


def universal(**facts):
    return Evidence(
        **{
            "detector": "universal",
            "label": 1,
            "statistic": 0.9,
            "threshold": 0.5,
            "p_value": 0.01,
            "scores": (0.0, 0.9),
            "details": "L2 1",
            **facts,
        }
    )


def report_of(*evidence, matrix=None):
    score = max((each.score for each in evidence), default=0.0)
    return ScanReport("infected", "all-to-one", (1,), score, None, evidence, matrix, (), (), 1.0)


def test_a_report_without_the_matrix_has_a_picture_without_it(tmp_path):
    for matrix in (None, np.eye(2)):
        scan_picture(report_of(universal(), matrix=matrix), tmp_path / f"{matrix is None}.png")
    scan_picture(report_of(), tmp_path / "nothing.png")
    narrow, wide = (int.from_bytes((tmp_path / f"{none}.png").read_bytes()[16:20], "big") for none in (True, False))
    assert wide == pytest.approx(2 * narrow, abs=2)  # the widths in the headers


def grey(shape, **settings):
    return build_classifier(TinyNet(channels=shape[0]), input_shape=shape, nb_classes=4, **settings)


def test_a_perturbation_is_drawn_on_grey():
    added = np.zeros((3, 2, 4), np.float32)
    added[0, 0, 1], added[:, 1, 3], added[2, 1, 0] = 255.0, -255.0, 51.0
    picture = np.array(perturbation_picture(added, grey((3, 2, 4), clip_values=(0.0, 255.0))))
    expected = np.full((2, 4, 3), 128)
    expected[0, 1], expected[1, 3], expected[1, 0] = (255, 128, 128), (0, 0, 0), (128, 128, 179)
    np.testing.assert_allclose(picture, expected, atol=1)
    np.testing.assert_array_equal(perturbation_picture(added[:1] / 255, grey((1, 2, 4)))[0][1], [255] * 3)


def test_a_large_one_is_averaged_down():
    added = np.tile(np.float32([0.2, -0.2]), (3, 200, 100))
    picture = np.array(perturbation_picture(added, grey((3, 200, 200))))
    assert picture.shape == (64, 64, 3)
    assert abs(picture - 127.5).max() < 0.2 * 255 / 2


@pytest.fixture
def data(infected, tmp_path):
    np.savez(tmp_path / "clean.npz", x=infected.x[:60], y=infected.y[:60])
    return tmp_path / "clean.npz"


@pytest.fixture
def fresh(tmp_path):
    classifier = build_classifier("wrn-10-1", input_shape=(1, 16, 16), nb_classes=10)
    storage.save(tmp_path / "fresh", classifier, "wrn-10-1")
    return tmp_path / "fresh"


@pytest.fixture
def brief(monkeypatch):
    """Have the scan run one detector, whatever the effort."""
    monkeypatch.setattr("art_aft.cli.scan.BackdoorScan", partial(BackdoorScan, detectors=["last_layer"]))


def test_an_infected_model_is_status_1_and_the_report_says_why(infected, data, tmp_path, capsys):
    storage.save(tmp_path / "suspect", infected.classifier, "wrn-10-1")
    arguments = ["scan", str(tmp_path / "suspect"), "--data", str(data), "--output", str(tmp_path / "out" / "scan")]
    assert cli.main([*arguments, "--quiet"]) == 1
    assert "infected, all-to-one: label 0" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert report["verdict"] == "infected"
    assert report["n_images"] == 60
    assert report["evidence"][0]["detector"] == "last_layer"
    assert report["evidence"][-1]["detector"] == "agreement"
    alone = [each for each in report["evidence"] if not each["label_p_values"] or each["detector"] == "agreement"]
    assert report["score"] == max(each["score"] for each in alone) >= 1
    assert not [each for each in report["evidence"] if "perturbation" in each]
    assert (tmp_path / "out" / "scan.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_knows_nothing_is_status_2(data, fresh, brief, capsys):
    assert cli.main(["scan", str(fresh), "--data", str(data), "--effort", "fast", "--quiet"]) == 2
    said = capsys.readouterr().out
    assert "cannot tell" in said
    assert "note: " in said
    assert "What helps: " in said


def test_infinite_scores_are_written_as_json_knows_them(data, fresh, tmp_path, monkeypatch):
    found = report_of(universal(detector="reversed_trigger", scores=(np.inf, 3.0)), matrix=np.eye(2))
    monkeypatch.setattr("art_aft.cli.scan.BackdoorScan", lambda *_, **__: lambda *_: found)
    assert cli.main(["scan", str(fresh), "--data", str(data), "--quiet", "--output", str(tmp_path / "scan")]) == 1

    def refuse(constant):
        raise AssertionError(f"JSON has no {constant}")

    report = json.loads((tmp_path / "scan.json").read_text(), parse_constant=refuse)
    assert report["evidence"][0]["scores"] == [None, 3.0]
    assert report["label_matrix"] == [[1.0, 0.0], [0.0, 1.0]]


def test_what_a_detector_added_to_images_is_shown_where_it_reports(data, fresh, tmp_path, monkeypatch):
    added = np.zeros((1, 16, 16), np.float32)
    added[0, 5, 7] = 1.0
    weak = universal(detector="universal_sparse", statistic=0.4, perturbation=added)
    found = report_of(universal(perturbation=added), weak)
    monkeypatch.setattr("art_aft.cli.scan.BackdoorScan", lambda *_, **__: lambda *_: found)
    cli.main(["scan", str(fresh), "--data", str(data), "--quiet", "--output", str(tmp_path / "scan")])
    strong, other = json.loads((tmp_path / "scan.json").read_text())["evidence"]
    assert np.shape(strong["picture"]) == (16, 16, 3)
    assert "picture" not in other
    page = (tmp_path / "scan.html").read_text()
    assert page.count('<rect fill="rgb(255,255,255)" x="7" y="5" width="1" height="1"/>') == 1


def test_reports_of_clean_models_give_a_false_alarm_rate(data, fresh, brief, tmp_path, capsys):
    arguments = ["scan", str(fresh), "--data", str(data), "--effort", "fast", "--quiet"]
    cli.main([*arguments, "--output", str(tmp_path / "known")])
    assert "false-alarm" not in capsys.readouterr().out
    report = json.loads((tmp_path / "known.json").read_text())
    for number, score in enumerate((report["score"], 99.0, 0.0)):
        (tmp_path / f"{number}.json").write_text(json.dumps({**report, "score": score}))
    reference = [str(tmp_path / f"{number}.json") for number in range(3)]
    cli.main([*arguments, "--reference", *reference, "--output", str(tmp_path / "rated")])
    assert f"score {report['score']:.2f}, false-alarm rate 75 %" in capsys.readouterr().out
    assert json.loads((tmp_path / "rated.json").read_text())["false_alarm_rate"] == 0.75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a report of a scan"),
        ("{}", "expected a report of a scan"),
        ('{"score": 0.5, "effort": "full"}', "of effort 'full', expected 'fast'"),
        ("nothing", "expected a report of a scan"),
    ],
)
def test_what_is_no_report_of_the_same_effort_is_status_2_and_named(text, message, data, tmp_path, capsys):
    (tmp_path / "other.json").write_text(text)
    arguments = ["scan", str(tmp_path / "model"), "--data", str(data), "--effort", "fast", "--quiet"]
    assert cli.main([*arguments, "--reference", str(tmp_path / "other.json")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_status_2_and_named(data, tmp_path, capsys):
    assert cli.main(["scan", str(tmp_path / "none"), "--data", str(data), "--quiet"]) == 2
    assert "none" in capsys.readouterr().err


def test_a_report_never_replaces_the_description_of_a_model(data, fresh, capsys):
    before = [file.read_bytes() for file in storage.both_files(fresh)]
    assert cli.main(["scan", str(fresh), "--data", str(data), "--output", str(fresh), "--quiet"]) == 2
    assert "--output: got" in capsys.readouterr().err
    assert [file.read_bytes() for file in storage.both_files(fresh)] == before


def test_a_report_without_a_score_is_no_reference(data, fresh, tmp_path, capsys):
    for score in ("null", '"high"', "NaN"):
        (tmp_path / "other.json").write_text(f'{{"effort": "fast", "score": {score}}}')
        arguments = ["scan", str(fresh), "--data", str(data), "--effort", "fast", "--quiet"]
        assert cli.main([*arguments, "--reference", str(tmp_path / "other.json")]) == 2
        assert "--reference: score: got" in capsys.readouterr().err


@pytest.mark.parametrize(("details", "ending"), [("", "statistic 0.90"), ("L2 1", "statistic 0.90, L2 1")])
def test_evidence_without_details_ends_where_it_ends(details, ending, data, fresh, monkeypatch, capsys):
    found = report_of(universal(details=details))
    monkeypatch.setattr("art_aft.cli.scan.BackdoorScan", lambda *_, **__: lambda *_: found)
    cli.main(["scan", str(fresh), "--data", str(data), "--quiet"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "universal" in line)
    assert line.endswith(ending)


def test_a_scan_shows_how_far_it_is_in_all(data, fresh, monkeypatch):
    shown = StringIO()
    open_bar = {"disable": False, "file": shown, "mininterval": 0}
    monkeypatch.setattr("art_aft.detection.scan.tqdm", lambda **bar: tqdm(**{**bar, **open_bar}))
    monkeypatch.setattr(
        "art_aft.cli.scan.BackdoorScan", partial(BackdoorScan, detectors=["last_layer", "latent_shift"])
    )
    cli.main(["scan", str(fresh), "--data", str(data)])
    assert "2/2" in shown.getvalue()
    assert "latent shift" in shown.getvalue()
