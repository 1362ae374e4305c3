"""The numbers that `docs/measured.py` writes on the pages, on rows counted by hand."""

import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"

ROWS = [
    {"attack": "badnets", "scores": {"acc": 0.5, "asr": 1.0}, "seconds": 1200.0},
    {"attack": "badnets", "scores": {"acc": 0.7, "asr": 0.9}, "seconds": 2.26},
    {"attack": "blend", "scores": {"acc": 0.123, "asr": 0.0}},
]


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """The modules `inline` and `detectors`, with a file of rows named `mine`."""
    monkeypatch.syspath_prepend(str(DOCS))
    from measuring import detectors, inline, rows

    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps({"rows": ROWS}), encoding="utf-8")
    yield inline, detectors
    rows.rows.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "measuring"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("question", "number"),
    [
        ("mine n", "3"),
        ("mine n attack!=badnets", "1"),
        ("mine n seconds>=3", "1"),
        ("mine n scores.acc<=0.5", "2"),
        ("mine scores.acc%/scores.asr% attack=badnets", "60.0 / 95.0"),
        ("mine max:seconds.0", "1,200"),
        ("mine min:seconds.1", "2.3"),
        ("mine sum:scores.asr.2", "1.90"),
    ],
)
def test_a_question_is_answered_from_the_rows(measuring, question, number):
    inline, _ = measuring
    assert inline.answer(question) == number
    page = f"Measured: <!-- row: {question} -->old<!-- end -->."
    assert inline.filled(page) == f"Measured: <!-- row: {question} -->{number}<!-- end -->."


def test_a_question_that_no_row_answers_is_an_error(measuring):
    inline, _ = measuring
    with pytest.raises(ValueError, match="no row fits"):
        inline.answer("mine scores.acc% attack=wanet")


def test_a_number_does_not_begin_a_line(measuring):
    inline, _ = measuring
    with pytest.raises(ValueError, match="start of a line"):
        inline.filled("- one\n  <!-- row: mine n -->3<!-- end -->")


def test_shares_and_scores_are_summed_up_as_by_hand(measuring):
    _, detectors = measuring
    # Clopper-Pearson: with no success of 24 the upper end is 1 - 0.025^(1/24).
    assert detectors.share(0, 24) == "0 of 24 (0 to 14 %)"
    assert detectors.auroc([0.1, 0.5], [0.5, 0.9]) == 0.875
    assert detectors.median_and_highest([0.2, 0.1, 0.9]) == "0.20, 0.90"
