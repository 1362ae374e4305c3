"""The scan: what it says about models whose answer is known, and that its numbers are what they say."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    EndsInSoftmax,
    TinyNet,
    encoded,
    few,
    recognised,
    tiny_classifier,
    tiny_data,
    untouched,
)

from art_aft import BackdoorScan, checks
from art_aft.adversarial.inversion import InversionRecipe
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.detection import agreement
from art_aft.detection.base import DETECTORS, Evidence
from art_aft.training.recipes import RECIPES

QUICK = {"reversed_trigger": InversionRecipe(steps=30, images_per_step=40)}

#: Half of the usual epochs.
BRIEF = replace(RECIPES["digits"], nb_epochs=12)

#: In the order in which they run.
FAST = ["last_layer", "latent_shift", "margin_blended", "margin_pixels", "margin_profile", "margin_smooth"]
PATCH = ["universal_patch"]
UNIVERSAL = [*PATCH, "universal", "universal_smooth", "universal_sparse", "universal_warp"]
EXPENSIVE = [*UNIVERSAL, "reversed_trigger", "universal_shift", "universal_sparse_shift"]
THOROUGH = ["adversarial_labels", "adversarial_shift"]
#: Some, for tests of what all have in common.
SOME = {"detectors": ["last_layer", "universal", "adversarial_labels", "adversarial_shift"]}


def by_detector(report):
    return {evidence.detector: evidence for evidence in report.evidence}


def ran(report):
    """The names of this package's detectors that ran, in their order."""
    return [name for name in by_detector(report) if name in (*FAST, *EXPENSIVE, *THOROUGH)]


class TestEffort:
    def test_no_other_detector_runs_where_the_two_cheapest_agree(self, monkeypatch):
        """That a scan with the default effort finds a backdoor is tested with the shell."""
        monkeypatch.setattr(agreement, "ALONE", 1e-3)
        report = BackdoorScan(tiny_classifier(), settings=QUICK)(*tiny_data(24))
        assert by_detector(report)["agreement"].score >= 1
        assert ran(report) == FAST[:2]
        assert report.omitted == (*FAST[2:], *EXPENSIVE, *THOROUGH)
        assert report.label_matrix is None

    def test_a_label_that_stands_out_unconfirmed_is_no_report_and_no_clean_bill(self, infected, monkeypatch):
        monkeypatch.setattr(agreement, "ALONE", 99.0)
        for least, verdict, notes in ((0.01, "cannot tell", 1), (99.0, "no evidence", 0)):
            monkeypatch.setattr(agreement, "_STANDS_OUT", least)
            report = BackdoorScan(infected.classifier, detectors=["last_layer", "margin_pixels"])(*few(infected))
            assert (report.verdict, report.targets, len(report.notes)) == (verdict, (), notes)
            assert all(re.search("^label 0 stands out .*nothing ran that could confirm", note) for note in report.notes)

    def test_detectors_can_be_named(self, infected):
        report = BackdoorScan(infected.classifier, detectors=["adversarial_labels", "last_layer"])(*few(infected))
        assert ran(report) == ["last_layer", "adversarial_labels"]
        assert report.label_matrix is not None

    def test_weights_alone_report_nothing_unless_they_were_asked_for(self, infected, monkeypatch):
        for name, detector in DETECTORS.items():
            if name != "last_layer":
                monkeypatch.setattr(detector, "detect", lambda self, suspect: None)
        report = BackdoorScan(infected.classifier)(*few(infected))
        assert (report.verdict, report.score, report.targets) == ("no evidence", 0.0, ())
        assert by_detector(report)["last_layer"].score >= 1

    @pytest.fixture
    def silent(self, monkeypatch):
        """Have no detector look for anything or report anything."""
        for name, detector in DETECTORS.items():
            monkeypatch.setattr(detector, "detect", finding(name, 0.5))

    def test_without_a_report_the_expensive_detectors_are_needed(self, silent):
        x, y = tiny_data(24)
        for effort in ("normal", "full"):
            report = BackdoorScan(tiny_classifier(), effort=effort)(x, y)
            last = THOROUGH if effort == "full" else []
            assert ran(report) == [*FAST, *EXPENSIVE, *last]
            assert report.omitted == (() if last else tuple(THOROUGH))

    def test_each_group_of_equal_cost_is_finished_and_no_other_begun(self, silent, monkeypatch):
        x, y = tiny_data(24)
        for name, names in (
            ("universal_patch", [*FAST, *PATCH]),
            ("universal", [*FAST, *UNIVERSAL]),
            ("reversed_trigger", [*FAST, *EXPENSIVE[:6]]),
            ("universal_shift", [*FAST, *EXPENSIVE]),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(DETECTORS[name], "detect", finding(name, 1.0))
                report = BackdoorScan(tiny_classifier(), effort="normal")(x, y)
            assert ran(report) == names

    def test_an_ambiguous_report_ends_nothing_and_its_label_comes_last(self, silent, infected, monkeypatch):
        ambiguous = finding("universal_patch", 2.0, ambiguous=True)
        monkeypatch.setattr(DETECTORS["universal_patch"], "detect", ambiguous)
        report = BackdoorScan(infected.classifier)(*few(infected))
        assert (ran(report), report.verdict, report.targets) == ([*FAST, *EXPENSIVE], "infected", (1,))
        monkeypatch.setattr(DETECTORS["universal"], "detect", finding("universal", 1.5, label=0))
        report = BackdoorScan(infected.classifier)(*few(infected))
        assert (ran(report), report.targets, report.score) == ([*FAST, *UNIVERSAL], (0, 1), 2.0)

    def test_a_shift_comes_before_an_ambiguous_label(self, silent, infected, monkeypatch):
        ambiguous = finding("universal_patch", 2.0, ambiguous=True)
        monkeypatch.setattr(DETECTORS["universal_patch"], "detect", ambiguous)
        monkeypatch.setattr(DETECTORS["universal_shift"], "detect", finding("universal_shift", 1.5, shift=True))
        report = BackdoorScan(infected.classifier)(*few(infected))
        assert (report.kind, report.targets) == ("all-to-all", (1, 2, 3, 4, 5, 6, 7, 8, 9, 0))


def finding(name, score, *, label=1, **marks):
    """What a detector does that gives a label this score, whatever the classifier is."""
    return lambda self, suspect: Evidence(name, label, score, 1.0, 0.5, (0.0,) * NB_CLASSES, **marks)


class TestDoubt:
    def test_few_images_are_too_few(self, infected):
        few = np.concatenate([np.flatnonzero(infected.y == label)[:2] for label in range(10)])
        report = BackdoorScan(infected.classifier, detectors=["last_layer"])(infected.x[few], infected.y[few])
        assert any("20 images" in note for note in report.notes)

    def test_a_clean_verdict_on_weak_evidence_is_none(self):
        classifier = tiny_classifier()
        x, y = tiny_data(60)
        report = BackdoorScan(classifier, **SOME)(x, y)
        assert any("right" in note for note in report.notes)
        assert report.verdict == "cannot tell"

    @pytest.mark.parametrize(("score", "verdict"), [(0.59, "no evidence"), (0.6, "cannot tell"), (0.99, "cannot tell")])
    def test_a_score_near_a_report_is_no_verdict_and_the_note_names_detector_and_label(
        self, score, verdict, infected, monkeypatch
    ):
        monkeypatch.setattr(DETECTORS["universal"], "detect", finding("universal", score))
        monkeypatch.setattr(DETECTORS["universal_sparse"], "detect", finding("universal_sparse", 0.3, label=4))
        report = BackdoorScan(infected.classifier, detectors=["universal", "universal_sparse"])(*few(infected))
        assert (report.verdict, report.score) == (verdict, score)
        said = [] if verdict == "no evidence" else [f"universal has a score of {score:.2f} for label 1"]
        assert [note.split(":")[0] for note in report.notes] == said

    def test_missing_classes_are_noted(self, infected):
        x, y = few(infected)
        report = BackdoorScan(infected.classifier, detectors=["last_layer"])(x[y < 7], y[y < 7])
        assert any("7 of 10" in note for note in report.notes)

    def test_without_a_reference_there_is_no_rate_and_with_one_it_counts(self):
        x, y = tiny_data(24)
        scan = BackdoorScan(tiny_classifier(), **SOME)
        assert scan(x, y).false_alarm_rate is None
        scan.reference = (-1.0,) * 19
        assert scan(x, y).false_alarm_rate == pytest.approx(1 / 20)
        scan.reference = (-1.0, 99.0, 99.0)
        assert scan(x, y).false_alarm_rate == pytest.approx(3 / 4)


class TestManners:
    """Of the scan; what each detector does is tested in test_detectors.py."""

    def test_twice_is_the_same(self):
        x, y = tiny_data(24)
        first, second = (BackdoorScan(tiny_classifier(), **SOME, seed=3)(x, y) for _ in range(2))
        assert first.evidence == second.evidence

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_every_encoding_of_pixels_gives_the_same_answer(self, encoding):
        x, y = tiny_data(40)
        settings = {**SOME, "precision": "float32"}
        plain = BackdoorScan(tiny_classifier(), **settings)(x, y)
        other = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        report = BackdoorScan(other.classifier, **settings)(other.encode(x), y)
        for name, evidence in by_detector(report).items():
            assert evidence.statistic == pytest.approx(by_detector(plain)[name].statistic, abs=0.08)

    def test_probabilities_give_the_answer_of_logits_with_a_remark(self):
        x, y = tiny_data(40)
        settings = {**SOME, "precision": "float32"}
        plain = BackdoorScan(tiny_classifier(), **settings)(x, y)
        other = build_classifier(EndsInSoftmax(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        report = BackdoorScan(other, **settings)(x, y)
        for name, evidence in by_detector(report).items():
            assert evidence.statistic == pytest.approx(by_detector(plain)[name].statistic, abs=0.08)
        assert (plain.remarks, len(report.remarks), report.notes) == ((), 1, plain.notes)

    def test_the_classifier_and_the_global_generators_stay_as_they_were(self):
        classifier = tiny_classifier(momentum=0.9)
        x, y = tiny_data(24)
        with untouched(classifier):
            BackdoorScan(classifier, **SOME)(x, y)

    def test_two_classes_have_no_shift(self):
        classifier = tiny_classifier(nb_classes=2)
        x, y = tiny_data(24, nb_classes=2)
        report = BackdoorScan(classifier, effort="full", settings=QUICK)(x, y)
        shifts = ["adversarial_shift", "universal_shift", "universal_sparse_shift"]
        assert ran(report) == [name for name in (*EXPENSIVE, *THOROUGH) if name not in shifts]
        assert set(report.omitted) == {*FAST, *shifts}

    def test_at_most_so_many_images_are_used(self, infected, monkeypatch):
        seen = []
        plain = TorchAttacksPGD.generate
        monkeypatch.setattr(
            TorchAttacksPGD, "generate", lambda self, x, y=None: seen.append(len(x)) or plain(self, x, y)
        )
        x, y = recognised(infected)
        BackdoorScan(infected.classifier, detectors=["adversarial_labels"], max_images=30)(x, y)
        assert set(seen) == {30}

    @pytest.mark.parametrize("max_images", [30, 1000])
    def test_checked_images_are_taken_as_arrays_are(self, max_images):
        classifier = tiny_classifier()
        x, y = tiny_data(40)
        scan = BackdoorScan(classifier, **SOME, max_images=max_images)
        assert scan(images_for(classifier, x, y)).evidence == scan(x, y).evidence

    def test_pixels_are_checked_once(self, monkeypatch):
        counts = {"check_images": 0, "check_pixels": 0}
        for name in counts:
            plain = getattr(checks, name)

            def counting(*arguments, plain=plain, name=name, **settings):
                counts[name] += 1
                return plain(*arguments, **settings)

            for module in [part for key, part in sys.modules.items() if key.split(".")[0] == "art_aft"]:
                if getattr(module, name, None) is plain:
                    monkeypatch.setattr(module, name, counting)
        x, y = tiny_data(24)
        report = BackdoorScan(tiny_classifier(), effort="full", settings=QUICK)(x, y)
        assert ran(report) == [*FAST, *EXPENSIVE, *THOROUGH]
        assert counts == {"check_images": 1, "check_pixels": 1}

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"effort": "sometimes"}, ValueError),
            ({"detectors": ["nose"]}, ValueError),
            ({"max_images": 0}, ValueError),
            ({"reference": [-1.0]}, ValueError),
            ({"reference": ["high"]}, TypeError),
            ({"settings": {"nothing": 1}}, ValueError),
            ({"precision": "float8"}, ValueError),
            ({"seed": -1}, ValueError),
            ({"verbose": 1}, TypeError),
        ],
    )
    def test_bad_settings_are_named(self, settings, error):
        with pytest.raises(error, match=next(iter(settings))):
            BackdoorScan(tiny_classifier(), **settings)

    def test_something_that_is_no_classifier_is_named(self):
        with pytest.raises(TypeError, match="classifier"):
            BackdoorScan(torch.nn.Linear(2, 2))

    def test_bad_data_are_named(self):
        x, y = tiny_data(24)
        with pytest.raises(ValueError, match="y: "):
            BackdoorScan(tiny_classifier())(x, y[:-1])
