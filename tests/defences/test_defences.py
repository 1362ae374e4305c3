"""The contract of every registered defence, whatever it does inside."""

import inspect
from functools import cache

import numpy as np
import pytest
import torch
from art.defences.transformer import Transformer
from art.estimators.classification import PyTorchClassifier
from helpers import ENCODINGS, NB_CLASSES, SHAPE, TinyNet, encoded, same_weights, tiny_classifier, tiny_data, untouched
from quick_defences import QUICK, every_defence, keywords, quick

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.defences import DEFENCES


def outside_pytorch(**changes):
    settings = {
        "model": TinyNet(),
        "loss": torch.nn.CrossEntropyLoss(),
        "input_shape": SHAPE,
        "nb_classes": NB_CLASSES,
        "clip_values": (0.0, 1.0),
    }
    return PyTorchClassifier(**{**settings, **changes})


@pytest.fixture
def data():
    return tiny_data(24)


def trained():
    """As it comes from training: in training mode but for one module, one parameter frozen, momentum at work."""
    classifier = tiny_classifier(momentum=0.9, dropout=0.2)
    classifier._model.train()
    classifier.model.bn.eval()
    classifier.model.fc.bias.requires_grad_(False)
    return classifier


@pytest.fixture
def victim():
    return trained()


@cache
def usual(name):
    """What a victim and data like those of each test become; for reading only."""
    x, y = tiny_data(24)
    return quick(name, trained())(x, y=y)


def test_the_registry_knows_the_defences_and_names_them_for_an_unknown_one():
    assert {"aft", "fine_pruning", "fine_tuning", "nad", "neural_cleanse"} <= set(DEFENCES)
    with pytest.raises(ValueError, match=r"unknown defence 'magic', expected one of: aft, .*fine_tuning"):
        DEFENCES["magic"]


@every_defence
class TestResult:
    def test_a_new_classifier_in_evaluation_mode_comes_back_and_the_old_one_stays(self, name, data, victim):
        x, y = data[0].copy(), data[1].copy()
        defence = quick(name, victim)
        with untouched(victim):
            purified = defence(x, y=y)
        assert type(purified) is type(victim)
        assert purified is not victim
        assert not same_weights(purified, victim)
        assert not any(module.training for module in purified.model.modules())
        own = {parameter.data_ptr() for parameter in victim.model.parameters()}
        assert own.isdisjoint(parameter.data_ptr() for parameter in purified.model.parameters())
        assert defence.get_classifier() is victim
        np.testing.assert_array_equal(x, data[0])
        np.testing.assert_array_equal(y, data[1])
        assert np.isfinite(purified.predict(x)).all()

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_seed_fixes_every_bit(self, name, precision, data, victim):
        x, y = data
        first, other = (quick(name, victim, precision=precision, seed=seed)(x, y=y) for seed in (3, 4))
        again = quick(name, victim, precision=precision)(x, y=y) if precision == "bfloat16" else usual(name)
        assert same_weights(first, again)
        assert not same_weights(first, other)

    def test_a_used_defence_gives_the_same_again(self, name, data, victim):
        x, y = data
        defence = quick(name, victim)
        defence(x, y=y)
        assert same_weights(defence(x, y=y), usual(name))

    def test_the_global_seeds_do_not_matter(self, name, data, victim):
        x, y = data
        expected = usual(name)
        with torch.random.fork_rng():
            torch.manual_seed(12345)
            assert same_weights(quick(name, victim)(x, y=y), expected)

    def test_a_given_classifier_is_changed_and_returned(self, name, data, victim):
        x, y = data
        given = clone(victim)
        with untouched(victim):
            result = quick(name, victim)(x, transformed_classifier=given, y=y)
        assert result is given
        assert same_weights(given, usual(name))

    def test_labels_may_be_indices_or_one_hot_and_images_float64(self, name, data, victim):
        x, y = data
        expected = usual(name)
        for labels in (y[:, np.newaxis], np.eye(NB_CLASSES)[y], y.astype(np.int32), y.tolist()):
            assert same_weights(quick(name, victim)(x, y=labels), expected)
        assert same_weights(quick(name, victim)(x.astype(np.float64), y=y), expected)

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_same_network_on_other_pixels_is_purified(self, name, encoding, data):
        """
        Whatever the encoding of the pixels, the purified network has moved the same way.

        Rounding differs between encodings, and some defences choose by comparing numbers that may be nearly equal, so
        what is compared is the direction in which the outputs have moved, not the outputs.
        """
        x, y = data
        classifier, given = tiny_classifier(), encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        before, moved = classifier.predict(x), {}
        for kind, each, encode, spread in (
            ("plain", classifier, lambda images: images, 1.0),
            ("encoded", given.classifier, given.encode, given.spread),
        ):
            settings = {"eps": 0.4 * spread} if "eps" in keywords(name) else {}
            if "attack" in keywords(name):
                settings["attack"] = TorchAttacksPGD(each, eps=0.05 * spread, max_iter=2, precision="float32")
            with untouched(each):
                purified = quick(name, each, **settings)(encode(x), y=y)
            moved[kind] = (purified.predict(encode(x)) - before).ravel()
        assert np.abs(moved["plain"]).max() > 0.01
        cosine = moved["plain"] @ moved["encoded"] / np.linalg.norm(moved["plain"]) / np.linalg.norm(moved["encoded"])
        assert cosine > 0.95
        assert np.linalg.norm(moved["encoded"]) == pytest.approx(np.linalg.norm(moved["plain"]), rel=0.2)

    def test_a_batch_may_be_larger_than_the_set(self, name, data, victim):
        x, y = data
        assert not same_weights(quick(name, victim, batch_size=1000)(x, y=y), victim)

    def test_a_report_tells_what_was_done(self, name, data, victim):
        defence = quick(name, victim)
        assert defence.report is None
        defence(data[0], y=data[1])
        first = defence.report
        assert (dict(first.settings), first.n_images) == (defence.get_params(), 24)
        assert first.stages
        assert 0 < sum(stage.seconds for stage in first.stages) <= first.seconds
        defence(data[0], y=data[1])
        assert [stage.name for stage in defence.report.stages] == [stage.name for stage in first.stages]

    def test_art_calls_find_what_they_expect(self, name, data, victim):
        defence = quick(name, victim)
        assert isinstance(defence, Transformer)
        assert defence.is_fitted
        with untouched(victim):
            assert defence.fit(*data) is None


@every_defence
class TestParams:
    def test_params_are_the_constructors_keywords_with_their_defaults(self, name, victim):
        defaults = {key: parameter.default for key, parameter in keywords(name).items()}
        defence = DEFENCES[name](victim)
        assert list(defence.params) == list(defaults)
        assert defence.get_params() == defaults

    def test_each_setting_is_documented(self, name):
        documentation = inspect.getdoc(DEFENCES[name])
        assert [key for key in ["classifier", *keywords(name)] if f":param {key}:" not in documentation] == []

    def test_settings_by_constructor_and_by_set_params_are_the_same(self, name, data, victim):
        x, y = data
        later = DEFENCES[name](victim)
        chosen = {key: value for key, value in QUICK.items() if key in keywords(name)}
        later.set_params(**chosen)
        assert later.get_params() == {**DEFENCES[name](victim).get_params(), **chosen}
        assert same_weights(later(x, y=y), usual(name))

    def test_unknown_settings_are_refused_and_change_nothing(self, name, victim):
        defence = quick(name, victim)
        before = defence.get_params()
        with pytest.raises(ValueError, match=r"unknown parameter 'epochs', expected one of: "):
            defence.set_params(seed=8, epochs=3)
        assert defence.get_params() == before
        with pytest.raises(TypeError, match="'epochs'"):
            DEFENCES[name](victim, epochs=3)

    def test_a_subclass_that_adds_nothing_keeps_its_settings(self, name, data, victim):
        x, y = data
        subclass = type("Subclass", (DEFENCES[name],), {})
        chosen = quick(name, victim).get_params()
        defence = subclass(victim, **chosen)
        assert defence.get_params() == chosen
        assert same_weights(defence(x, y=y), usual(name))


BAD_VALUES = [
    ("seed", -1, ValueError, "-1"),
    ("batch_size", 0, ValueError, "0"),
    ("batch_size", "8", TypeError, "'8'"),
    ("nb_epochs", 1.5, TypeError, "1.5"),
    ("learning_rate", 0, ValueError, "0"),
    ("momentum", 2, ValueError, "2"),
    ("weight_decay", -1, ValueError, "-1"),
    ("schedule", "slow", ValueError, "'slow'"),
    ("padding", -1, ValueError, "-1"),
    ("horizontal_flip", "no", TypeError, "'no'"),
    ("precision", "int8", ValueError, "'int8'"),
    ("verbose", 1, TypeError, "1"),
    ("eps", 0.0, ValueError, "0.0"),
    ("eps", -0.1, ValueError, "-0.1"),
    ("attack", "pgd", TypeError, "str"),
    ("max_steps", -1, ValueError, "-1"),
]


@pytest.mark.parametrize(
    ("name", "setting", "value", "error", "shown"),
    [(name, *bad) for name in sorted(DEFENCES) for bad in BAD_VALUES if bad[0] in keywords(name)],
)
def test_a_bad_value_is_refused_by_name_and_all_settings_stay(name, setting, value, error, shown, victim):
    defence = quick(name, victim)
    before = defence.get_params()
    # A valid one comes first, and must not stay either.
    valid = {"verbose": True} if setting != "verbose" else {"seed": 99}
    with pytest.raises(error, match=f"^{setting}: got {shown}"):
        defence.set_params(**valid, **{setting: value})
    assert defence.get_params() == before
    with untouched(victim), pytest.raises(error, match=f"^{setting}: got {shown}"):
        DEFENCES[name](victim, **{setting: value})


GOOD_X, GOOD_Y = tiny_data(24)
BAD_DATA = {
    "not an array": (GOOD_X.tolist(), GOOD_Y, TypeError, r"^x: got list, expected a numpy array"),
    "None": (None, GOOD_Y, TypeError, r"^x: got NoneType, expected a numpy array"),
    "rank 3": (GOOD_X[0], GOOD_Y, ValueError, r"^x: got shape \(3, 12, 12\), expected \(N, 3, 12, 12\)"),
    "one channel": (GOOD_X[:, :1], GOOD_Y, ValueError, r"^x: got shape \(24, 1, 12, 12\), expected \(N, 3, 12, 12\)"),
    "channels last": (
        GOOD_X.transpose(0, 2, 3, 1),
        GOOD_Y,
        ValueError,
        r"^x: got shape \(24, 12, 12, 3\), expected \(N, 3, 12, 12\)",
    ),
    "empty": (GOOD_X[:0], GOOD_Y[:0], ValueError, r"^x: got an empty set of shape \(0, 3, 12, 12\)"),
    "integers": ((GOOD_X * 255).astype(np.int64), GOOD_Y, TypeError, r"^x: got dtype int64, expected floating-point"),
    "NaN": (np.where(GOOD_X > 0.99, np.nan, GOOD_X), GOOD_Y, ValueError, r"^x: got NaN or infinite pixels"),
    "infinite": (np.where(GOOD_X > 0.99, np.inf, GOOD_X), GOOD_Y, ValueError, r"^x: got NaN or infinite pixels"),
    "too bright": (GOOD_X * 255, GOOD_Y, ValueError, r"^x: got pixels in \[.*\], expected clip_values \[0, 1\]"),
    "too dark": (GOOD_X - 1, GOOD_Y, ValueError, r"^x: got pixels in \[-.*\], expected clip_values \[0, 1\]"),
    "no labels": (GOOD_X, None, ValueError, r"^y: got None, expected labels"),
    "few labels": (GOOD_X, GOOD_Y[:7], ValueError, r"^y: got 7 labels, expected one for each of the 24 images"),
    "label too large": (GOOD_X, GOOD_Y + 1, ValueError, r"^y: got labels in \[1, 4\], expected 0 to 3"),
    "negative label": (GOOD_X, GOOD_Y - 1, ValueError, r"^y: got labels in \[-1, 2\], expected 0 to 3"),
    "fractions": (GOOD_X, GOOD_Y + 0.5, ValueError, r"^y: got labels that are not whole numbers"),
    "words": (GOOD_X, GOOD_Y.astype(str), ValueError, r"^y: got an array of dtype <U"),
    "long one-hot": (GOOD_X, np.eye(5)[GOOD_Y], ValueError, r"^y: got one-hot rows of length 5, expected nb_classes 4"),
    "soft labels": (GOOD_X, np.full((24, 4), 0.25), ValueError, r"^y: got rows that are not one-hot"),
}


@pytest.mark.parametrize(
    ("name", "case"),
    # All defences have the same door; so one meets all cases, and the others a few.
    [("fine_tuning", case) for case in BAD_DATA]
    + [(name, case) for name in sorted(DEFENCES) for case in ("rank 3", "NaN", "no labels", "label too large")],
)
class TestData:
    @pytest.mark.parametrize("in_place", [False, True], ids=["copy", "in place"])
    def test_that_do_not_fit_are_refused_by_name(self, name, case, in_place, victim):
        x, y, error, message = BAD_DATA[case]
        defence, given = quick(name, victim), clone(victim)
        with untouched(victim, given), pytest.raises(error, match=message):
            defence(x, transformed_classifier=given if in_place else None, y=y)


@every_defence
class TestErrors:
    @pytest.mark.parametrize("thing", [None, "wrn-16-1", TinyNet()], ids=["None", "name", "module"])
    def test_what_is_no_pytorch_classifier_is_refused(self, name, thing, data, victim):
        message = f"classifier: got {type(thing).__name__}, expected ART's PyTorchClassifier"
        with pytest.raises(TypeError, match="^" + message):
            quick(name, thing)
        if thing is not None:  # which stands for a copy
            with untouched(victim), pytest.raises(TypeError, match="^transformed_" + message):
                quick(name, victim)(data[0], transformed_classifier=thing, y=data[1])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"clip_values": None}, r"^classifier\.clip_values: got None, expected \(low, high\)"),
            ({"input_shape": (432,)}, r"^classifier\.input_shape: got \(432,\)"),
            ({"loss": torch.nn.MSELoss()}, r"^classifier\.loss: got MSELoss"),
        ],
    )
    def test_a_classifier_that_cannot_be_worked_on_is_refused(self, name, changes, message, data, victim):
        with pytest.raises(ValueError, match=message):
            quick(name, outside_pytorch(**changes))
        with untouched(victim), pytest.raises(ValueError, match=message.replace("^", "^transformed_")):
            quick(name, victim)(data[0], transformed_classifier=outside_pytorch(**changes), y=data[1])


@pytest.mark.parametrize("name", sorted(name for name in DEFENCES if "learning_rate" in keywords(name)))
class TestOwnOptimizer:
    def test_no_learning_rate_and_no_optimizer_is_refused(self, name, data):
        classifier = tiny_classifier()
        defence = quick(name, classifier, learning_rate=None)
        with (
            untouched(classifier),
            pytest.raises(ValueError, match=r"^learning_rate: got None for a classifier without an optimizer"),
        ):
            defence(data[0], y=data[1])

    def test_without_a_learning_rate_the_copys_own_optimizer_is_used(self, name, data, victim):
        with untouched(victim):
            purified = quick(name, victim, learning_rate=None)(data[0], y=data[1])
        assert not same_weights(purified, victim)
        before = [slot["momentum_buffer"] for slot in victim.optimizer.state.values()]
        after = [slot["momentum_buffer"] for slot in purified.optimizer.state.values()]
        assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@every_defence
def test_settings_never_touch_the_report(name, data, victim):
    defence = quick(name, victim)
    defence(data[0], y=data[1])
    report = defence.report
    defence.set_params(verbose=True, seed=7)
    assert defence.report is report
    assert report.settings["seed"] == 3


def test_an_nll_classifier_is_purified_like_one_with_cross_entropy(data):
    x, y = data
    log_model = torch.nn.Sequential(TinyNet(), torch.nn.LogSoftmax(dim=1))
    classifier = PyTorchClassifier(
        log_model, loss=torch.nn.NLLLoss(), input_shape=SHAPE, nb_classes=NB_CLASSES, clip_values=(0.0, 1.0)
    )
    for name in ("aft", "fine_tuning"):
        settings = {"nb_epochs": 1, "batch_size": 24, "padding": 0}
        expected = quick(name, tiny_classifier(), **settings)(x, y=y).predict(x)
        purified = quick(name, classifier, **settings)(x, y=y).predict(x)
        np.testing.assert_allclose(purified, torch.log_softmax(torch.from_numpy(expected), dim=1), atol=2e-3)


def test_two_images_are_enough_one_at_a_time():
    x, y = tiny_data(2)[0], np.array([0, 3])
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
    for name in ("aft", "fine_tuning"):
        purified = quick(name, classifier, batch_size=1)(x, y=y)
        loss = [-torch.log_softmax(torch.from_numpy(c.predict(x)), 1)[[0, 1], y].mean() for c in (classifier, purified)]
        assert loss[1] < loss[0]
