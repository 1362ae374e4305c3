"""The scan: what it says about models whose answer is known, and that its numbers are what they say."""

import json

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    linear_classifier,
    tiny_classifier,
    tiny_data,
    untouched,
)

from art_aft import BackdoorScan
from art_aft.adversarial.inversion import InversionRecipe
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import carried, default_eps, universal_perturbations
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier, predict_labels
from art_aft.classifiers.layers import output_weights
from art_aft.cli import main as cli
from art_aft.detection.last_layer import greatest_by_chance, positive_evidence
from art_aft.detection.report import ALARMS, ScanReport, Sign
from art_aft.experiments.report import scan_picture
from art_aft.experiments.victims import Infection, plant
from art_aft.training.recipes import RECIPES

QUICK = InversionRecipe(steps=40, images_per_step=120)


def signs(report):
    return {sign.kind: sign for sign in report.signs}


def recognised(infected):
    """The images that the classifier gets right, which alone are looked at."""
    right = infected.classifier.predict(infected.x).argmax(axis=1) == infected.y
    return infected.x[right], infected.y[right]


@pytest.fixture(scope="module")
def scanned(infected):
    return BackdoorScan(infected.classifier, effort="all", recipe=QUICK)(infected.x, infected.y)


def scan_of(infection):
    scene = plant(infection)
    return BackdoorScan(scene.classifier, effort="all", max_images=60, recipe=QUICK)(scene.x_clean, scene.y_clean)


@pytest.fixture(scope="module")
def benign():
    return scan_of(Infection("badnets", rate=0.0, recipe=RECIPES["digits"]))


@pytest.fixture(scope="module")
def shifted():
    return scan_of(Infection("badnets", labels="all-to-all", recipe=RECIPES["digits"]))


class TestOnDigits:
    def test_a_backdoor_is_found_with_its_label(self, scanned):
        assert scanned.verdict == "infected"
        assert scanned.kind == "all-to-one"
        assert scanned.targets[0] == 0
        assert scanned.score >= 1
        assert scanned.notes == ()

    def test_nothing_is_found_in_the_same_model_without_one(self, benign):
        assert benign.verdict != "infected"
        assert (benign.kind, benign.targets) == (None, ())
        assert benign.score < 1

    def test_an_all_to_all_backdoor_is_named_with_its_shift(self, shifted):
        assert shifted.verdict == "infected"
        assert shifted.kind == "all-to-all"
        assert shifted.targets == tuple((label + 1) % 10 for label in range(10))

    def test_adversarial_examples_fall_on_the_next_label_and_one_perturbation_moves_all_there(self, shifted, benign):
        for kind in ("shift", "shared_shift"):
            assert (signs(shifted)[kind].label, signs(shifted)[kind].relative) == (1, True)
            assert signs(shifted)[kind].alarms >= 1
            assert signs(benign)[kind].alarms < 1

    def test_the_effort_says_which_signs_are_looked_at(self, infected):
        # It alarms at the first sign; so the dear ones are not needed, and the first may be enough.
        cheap = ["weights", "shared", "labels", "shift"]
        for effort, kinds in (("weights", cheap[:1]), ("first_alarm", cheap[:1]), ("if_needed", cheap)):
            report = BackdoorScan(infected.classifier, effort=effort)(infected.x, infected.y)
            assert [sign.kind for sign in report.signs] == kinds
            assert (report.verdict, report.targets[0]) == ("infected", 0)
            assert (report.label_matrix is None) == (effort != "if_needed")

    def test_without_an_alarm_the_dear_signs_are_needed(self, monkeypatch):
        monkeypatch.setattr("art_aft.detection.report.ALARMS", dict.fromkeys(ALARMS, 99.0))  # no strength is so great
        x, y = tiny_data(24)
        for effort in ("first_alarm", "if_needed", "all"):
            report = BackdoorScan(tiny_classifier(), effort=effort, recipe=QUICK)(x, y)
            kinds = [sign.kind for sign in report.signs]
            assert kinds == ["weights", "shared", "labels", "shift", "shared_shift", "size"]

    def test_the_numbers_are_those_of_the_perturbations_themselves(self, infected, scanned):
        sign = signs(scanned)["shared"]
        eps = float(sign.where.removeprefix("L2 "))
        multiples = {f"{m * default_eps(2, (1, 16, 16), (0, 1)):.3g}": m for m in (0.5, 1, 2, 4)}
        exact = multiples[f"{eps:.3g}"] * default_eps(2, (1, 16, 16), (0, 1))
        x, y = recognised(infected)
        r = universal_perturbations(infected.classifier, x, y, eps=exact)
        shares = carried(infected.classifier, x, y, r, range(10))
        assert sign.values == pytest.approx(shares)
        assert sign.label == shares.argmax()
        assert sign.strength == pytest.approx(np.sort(shares)[-1] - np.sort(shares)[-2])

    def test_the_label_matrix_is_that_of_the_adversarial_examples(self, infected, scanned):
        attack = TorchAttacksPGD(infected.classifier, eps=16 / 255)
        x, y = recognised(infected)
        fallen = predict_labels(infected.classifier, attack.generate(x, y))
        for label in range(10):
            shares = np.bincount(fallen[y == label], minlength=10) / (y == label).sum()
            assert scanned.label_matrix[label] == pytest.approx(shares)

    def test_one_hot_and_8bit_data_are_taken(self, infected, scanned):
        one_hot = np.eye(10, dtype=np.float32)[infected.y]
        eightbit = np.rint(infected.x * 255).astype(np.uint8)
        report = BackdoorScan(infected.classifier, effort="cheap")(eightbit, one_hot)
        assert (report.verdict, report.targets[0]) == ("infected", 0)
        assert "size" not in signs(report)


class TestWeights:
    def test_each_measure_is_a_sum_over_features(self):
        weights = np.array([[1.0, -2.0, 3.0], [0.0, 0.0, 1.0], [-1.0, 5.0, 2.0]])
        found = positive_evidence(weights)  # relative: [1, -3, 1], [0, -1, -1], [-1, 4, 0]
        assert found["all features"] == pytest.approx([1 - 1.5 + 1, -1.0, -0.5 + 4])
        assert found["strongest features"] == pytest.approx([2.0, 0.0, 16.0])

    def test_what_all_labels_have_in_common_says_nothing(self):
        rng = np.random.default_rng(0)
        weights, common = rng.normal(size=(10, 64)), rng.normal(size=64)
        for name, values in positive_evidence(weights).items():
            assert positive_evidence(weights + common)[name] == pytest.approx(values)

    @pytest.mark.parametrize(("n", "critical", "level"), [(10, 2.176, 0.05), (10, 2.410, 0.01), (20, 2.557, 0.05)])
    def test_chance_is_that_of_the_tables_of_grubbs(self, n, critical, level):
        # Values of which the greatest lies `critical` standard deviations above the mean of all.
        others = np.random.default_rng(1).normal(size=n - 1)
        others = (others - others.mean()) / others.std()
        values = np.append(others, critical / np.sqrt(((n - 1) / n) ** 2 - critical**2 / n))
        grubbs = (values.max() - values.mean()) / values.std(ddof=1)
        assert grubbs == pytest.approx(critical, abs=1e-9)
        assert greatest_by_chance(values) == pytest.approx(level, rel=0.02)

    def test_chance_keeps_its_level_on_noise(self):
        rng = np.random.default_rng(2)
        rate = np.mean([greatest_by_chance(rng.normal(size=10)) <= 0.05 for _ in range(4000)])
        assert rate == pytest.approx(0.05, abs=0.011)  # three standard errors

    def test_equal_values_stand_out_by_chance(self):
        assert greatest_by_chance(np.ones(5)) == 1.0
        assert greatest_by_chance(np.ones(5) + 1e-12 * np.arange(5) ** 9) == 1.0
        assert 0 < greatest_by_chance(np.array([1.0, 1.0, 1.0, 2.0])) < 1e-9

    def test_the_layer_is_the_one_that_gives_the_logits(self):
        classifier = tiny_classifier()
        x, _ = tiny_data(4)
        weights = output_weights(classifier, x)
        layers = [part for part in classifier.model.modules() if isinstance(part, torch.nn.Linear)]
        assert weights == pytest.approx(layers[-1].weight.detach().numpy())

    def test_the_last_layer_alone_clears_no_model(self):
        scene = plant(Infection("badnets", rate=0.0, recipe=RECIPES["digits"]))
        report = BackdoorScan(scene.classifier, effort="weights")(scene.x_clean, scene.y_clean)
        assert report.score < 0.8
        assert report.verdict == "cannot tell"
        assert any("last layer" in note for note in report.notes)

    def test_a_network_without_such_a_layer_is_not_cleared(self):
        class Sums(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Conv2d(3, 8, 3)

            def forward(self, x):
                return self.layer(x).mean(dim=(2, 3)).reshape(len(x), 4, 2).sum(dim=2)

        x, y = tiny_data(60)
        classifier = PyTorchClassifier(
            Sums(), loss=torch.nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=4, clip_values=(0, 1)
        )
        y = predict_labels(classifier, x)
        report = BackdoorScan(classifier, effort="weights")(x, y)
        assert (report.signs, report.score, report.verdict) == ((), 0.0, "cannot tell")
        assert any("last layer" in note for note in report.notes)


class TestHypotheses:
    """A linear model has no backdoor but its weights: they can be chosen so that one hypothesis is plainly right."""

    def test_of_a_label_that_every_direction_leads_to(self):
        weights = np.zeros((4, *SHAPE), dtype=np.float32)
        for label in range(4):
            weights[label, :, 3 * label : 3 * label + 3] = 0.05
        weights[2, :, :, 0] = 3.0  # one column of pixels that any image can be given
        x = np.full((40, *SHAPE), 0.5, dtype=np.float32)
        x[..., 0] = 0.0
        y = np.arange(40) % 4
        for label in range(4):
            x[y == label, :, 3 * label : 3 * label + 3, 1:] = 0.9
        classifier = linear_classifier(weights)
        assert (predict_labels(classifier, x) == y).all()
        report = BackdoorScan(classifier, effort="cheap", precision="float32")(x, y)
        assert (report.verdict, report.kind, report.targets) == ("infected", "all-to-one", (2,))

    @pytest.mark.parametrize("shift", [1, 2, 3])
    def test_of_a_shift(self, shift):
        """Class k lies next to class k + shift: half its weights are shared."""
        blocks = np.zeros((4, 3 * 12 * 12), dtype=np.float32)
        for label in range(4):
            blocks[label, 100 * label : 100 * label + 100] = 0.2
        weights = blocks.copy()
        for label in range(4):
            weights[(label + shift) % 4] += 0.9 * blocks[label]
        if shift == 2:
            pytest.skip("with four classes a shift by two is a swap, which clean models show too")
        x = np.clip(0.2 + 2.5 * blocks[np.arange(40) % 4], 0, 1).reshape(40, *SHAPE)
        y = np.arange(40) % 4
        classifier = linear_classifier(weights.reshape(4, *SHAPE))
        assert (predict_labels(classifier, x) == y).all()
        found = signs(BackdoorScan(classifier, effort="cheap", precision="float32")(x, y))["shift"]
        assert found.label == shift
        assert found.strength > ALARMS["shift"]

    def test_the_strength_of_a_sign_counts_in_units_of_its_alarm(self):
        for kind, threshold in ALARMS.items():
            assert Sign(kind, threshold, 0, "", ()).alarms == pytest.approx(1)
            assert Sign(kind, threshold / 4, 0, "", ()).alarms == pytest.approx(0.25)


class TestDoubt:
    def test_few_images_are_too_few(self, infected):
        few = np.concatenate([np.flatnonzero(infected.y == label)[:2] for label in range(10)])
        report = BackdoorScan(infected.classifier, effort="cheap")(infected.x[few], infected.y[few])
        assert any("20 images" in note for note in report.notes)

    def test_a_clean_verdict_on_weak_evidence_is_none(self):
        classifier = tiny_classifier()
        x, y = tiny_data(60)
        report = BackdoorScan(classifier, effort="cheap")(x, y)
        assert any("right" in note for note in report.notes)
        assert report.verdict == "cannot tell"

    def test_missing_classes_are_noted(self, infected):
        some = infected.y < 7
        report = BackdoorScan(infected.classifier, effort="cheap")(infected.x[some], infected.y[some])
        assert any("7 of 10" in note for note in report.notes)

    def test_without_a_reference_there_is_no_rate_and_with_one_it_counts(self):
        x, y = tiny_data(24)
        scan = BackdoorScan(tiny_classifier(), effort="cheap")
        assert scan(x, y).false_alarm_rate is None
        scan.reference = (-1.0,) * 19
        assert scan(x, y).false_alarm_rate == pytest.approx(1 / 20)
        scan.reference = (-1.0, 99.0, 99.0)
        assert scan(x, y).false_alarm_rate == pytest.approx(3 / 4)


class TestManners:
    def test_twice_is_the_same(self):
        x, y = tiny_data(40)
        first, second = (BackdoorScan(tiny_classifier(), effort="all", seed=3)(x, y) for _ in range(2))
        assert first.signs == second.signs

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_every_encoding_of_pixels_gives_the_same_answer(self, encoding):
        x, y = tiny_data(40)
        settings = {"effort": "cheap", "precision": "float32"}
        plain = BackdoorScan(tiny_classifier(), **settings)(x, y)
        other = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        report = BackdoorScan(other.classifier, **settings)(other.encode(x), y)
        for kind, sign in signs(report).items():
            assert sign.strength == pytest.approx(signs(plain)[kind].strength, abs=0.08)

    def test_the_classifier_and_the_global_generators_stay_as_they_were(self):
        classifier = tiny_classifier(momentum=0.9)
        x, y = tiny_data(24)
        with untouched(classifier):
            BackdoorScan(classifier)(x, y)

    def test_two_classes_have_no_shift(self):
        classifier = tiny_classifier(nb_classes=2)
        x, y = tiny_data(24, nb_classes=2)
        assert not any(sign.relative for sign in BackdoorScan(classifier, effort="cheap")(x, y).signs)

    def test_at_most_so_many_images_are_used(self, infected, monkeypatch):
        seen = []
        plain = TorchAttacksPGD.generate
        monkeypatch.setattr(TorchAttacksPGD, "generate", lambda self, x, y: seen.append(len(x)) or plain(self, x, y))
        BackdoorScan(infected.classifier, effort="cheap", max_images=50)(infected.x, infected.y)
        assert set(seen) == {50}

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"effort": "sometimes"}, ValueError),
            ({"max_images": 0}, ValueError),
            ({"reference": [-1.0]}, ValueError),
            ({"reference": ["high"]}, TypeError),
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


def test_a_report_that_ended_at_the_first_alarm_has_a_picture_without_the_matrix(tmp_path):
    sign = Sign("shared", 0.9, 1, "L2 1", (0.0, 0.9))
    for matrix in (None, np.eye(2)):
        report = ScanReport("infected", "all-to-one", (1,), sign.alarms, None, (sign,), matrix, (), 1.0)
        scan_picture(report, tmp_path / f"{matrix is None}.png")
    nothing = ScanReport("cannot tell", None, (), 0.0, None, (), None, (), 1.0)
    scan_picture(nothing, tmp_path / "nothing.png")
    narrow, wide = (int.from_bytes((tmp_path / f"{none}.png").read_bytes()[16:20], "big") for none in (True, False))
    assert wide == pytest.approx(2 * narrow, abs=2)  # the widths in the headers


class TestFromTheShell:
    @pytest.fixture
    def data(self, infected, tmp_path):
        np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
        return tmp_path / "clean.npz"

    def test_an_infected_model_is_status_1_and_the_report_says_why(self, infected, data, tmp_path, capsys):
        storage.save(tmp_path / "suspect", infected.classifier, "wrn-10-1")
        arguments = ["scan", str(tmp_path / "suspect"), "--data", str(data), "--output", str(tmp_path / "out" / "scan")]
        assert cli.main([*arguments, "--quiet"]) == 1
        assert "infected, all-to-one: label 0" in capsys.readouterr().out
        report = json.loads((tmp_path / "out" / "scan.json").read_text())
        assert report["verdict"] == "infected"
        assert report["n_images"] == len(infected.x)
        assert np.array(report["label_matrix"]).shape == (10, 10)
        assert (tmp_path / "out" / "scan.png").read_bytes().startswith(b"\x89PNG")

    def test_a_model_that_knows_nothing_is_status_2(self, data, tmp_path, capsys):
        fresh = build_classifier("wrn-10-1", input_shape=(1, 16, 16), nb_classes=10)
        storage.save(tmp_path / "fresh", fresh, "wrn-10-1")
        arguments = ["scan", str(tmp_path / "fresh"), "--data", str(data), "--effort", "cheap", "--quiet"]
        assert cli.main(arguments) == 2
        assert "cannot tell" in capsys.readouterr().out

    def test_reports_of_clean_models_give_a_false_alarm_rate(self, data, tmp_path, capsys):
        fresh = build_classifier("wrn-10-1", input_shape=(1, 16, 16), nb_classes=10)
        storage.save(tmp_path / "model", fresh, "wrn-10-1")
        arguments = ["scan", str(tmp_path / "model"), "--data", str(data), "--effort", "weights", "--quiet"]
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
            ('{"score": 0.5, "effort": "all"}', "of effort 'all', expected 'cheap'"),
            ("nothing", "expected a report of a scan"),
        ],
    )
    def test_what_is_no_report_of_the_same_effort_is_status_2_and_named(self, text, message, data, tmp_path, capsys):
        (tmp_path / "other.json").write_text(text)
        arguments = ["scan", str(tmp_path / "model"), "--data", str(data), "--effort", "cheap", "--quiet"]
        assert cli.main([*arguments, "--reference", str(tmp_path / "other.json")]) == 2
        assert message in capsys.readouterr().err

    def test_a_missing_file_is_status_2_and_named(self, data, tmp_path, capsys):
        assert cli.main(["scan", str(tmp_path / "none"), "--data", str(data), "--quiet"]) == 2
        assert "none" in capsys.readouterr().err
