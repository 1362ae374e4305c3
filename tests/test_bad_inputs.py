"""
Bad arguments of everything that is called from outside: each call works, or raises a ValueError or TypeError that names
the argument, and leaves classifier, settings, files and random generators as they were.

Calls and parameters are found by their signatures, and what they must refuse by their annotations. A new one is tried
as soon as it exists.
"""

import re
from collections import Counter

import numpy as np
import pytest
from bad_inputs import VALUES, World, arrays, fits, is_finite, public
from helpers import global_rng, same_weights, weights

#: Parameters that take more than their annotation says.
ALSO_TAKEN = {
    # Labels and norms may be lists of numbers, or one number for all.
    "y": {"no entries"},
    "y_true": {"no entries"},
    "y_predicted": {"no entries"},
    "norms": {"True", "-1", "1.5", "a list of lists"},
    "reference": {"an array"},
}
#: Calls that change their classifier, as they are meant to.
IN_PLACE = {"AdversarialFineTuningTrainer.fit", "load_state_dict"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad_inputs")


@pytest.fixture(scope="module")
def world(folder):
    return World(folder)


@pytest.fixture(scope="module")
def counts():
    return Counter()


def values_for(subject, name):
    """Values for a parameter, with the reason why one must be refused, or None."""
    hint = subject.hints[name]
    for kind, value in VALUES.items():
        if name in subject.defaults and value is subject.defaults[name]:
            continue
        allowed = fits(value, hint) or kind in ALSO_TAKEN.get(name, ())
        yield kind, value, None if allowed else f"is no {hint}"
    if name == "seed":
        yield "a huge number", 2**64, "is too large for torch's generators"
    good = subject.good.get(name)
    if isinstance(good, np.ndarray):
        for kind, value in arrays(good).items():
            yield kind, value, "is no array that can be used"


def settings_of(subject):
    if not subject.name.endswith(".set_params"):
        return {}
    return {name: getattr(subject.call.__self__, name) for name in subject.hints}


def same_settings(one, other):
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)


def listing(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def outcome(subject, name, kind, value, refused_because):
    """Call with one bad argument; return "works" or "clear error", or else what is wrong."""
    try:
        result = subject.call(**{**subject.good, name: value})
    except (TypeError, ValueError) as error:
        named = [word for word in re.findall(r"\w+", str(error)) if word in subject.hints]
        # A value that is legal by itself may not go with another argument, which the message may name instead.
        good = name in named or (refused_because is None and named)
        return "clear error" if good else f"{type(error).__name__} without the argument's name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if refused_because is not None:
        return f"was taken, but {refused_because}"
    return "works" if is_finite(result) else "a NaN or an infinity came out"


@pytest.mark.parametrize("entry", public())
def test_bad_arguments_are_refused_by_name_and_leave_everything_as_it_was(entry, world, folder, counts, monkeypatch):
    monkeypatch.chdir(folder)  # text may be a path
    wrong = []
    for subject in world.subjects(entry):
        before, rng = weights(world.classifier), global_rng()
        for name in subject.hints:
            for kind, value, reason in values_for(subject, name):
                settings, files = settings_of(subject), listing(folder)
                found = outcome(subject, name, kind, value, reason)
                counts[found] += 1
                case = f"{subject.name}({name}={kind})"
                if found not in ("works", "clear error"):
                    wrong.append(f"{case}: {found}")
                if found == "works" and settings:
                    vars(subject.call.__self__).update(settings)
                elif not same_settings(settings, settings_of(subject)):
                    wrong.append(f"{case}: settings changed, though it was refused")
                if found != "works" and files != listing(folder):
                    wrong.append(f"{case}: files changed")
                if global_rng() != rng:
                    wrong.append(f"{case}: a global random generator was moved")
                    rng = global_rng()
                if not (found == "works" and subject.name in IN_PLACE) and not same_weights(before, world.classifier):
                    wrong.append(f"{case}: the classifier changed")
                before = weights(world.classifier)
        counts["subjects"] += 1
        counts["parameters"] += len(subject.hints)
    assert not wrong, "\n".join(wrong)
    counts["entries"] += 1


def test_the_table_has_found_what_there_is(counts):
    """As many as there were when it was written; a smaller table means that the search has lost something."""
    if counts["entries"] < len(public()):
        pytest.skip("not all of the table has run")
    print(dict(counts))
    assert counts["subjects"] >= 100
    assert counts["parameters"] >= 644
    assert counts["clear error"] >= 12_279
