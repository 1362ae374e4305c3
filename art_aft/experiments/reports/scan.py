"""The report of `art-aft scan` for a browser."""

from __future__ import annotations

from collections.abc import Sequence

from art_aft.experiments.reports.charts import bars, gallery, image, matrix, meters
from art_aft.experiments.reports.parts import (
    Source,
    Verdict,
    classes,
    document,
    ending,
    heading,
    listing,
    paragraphs,
    section,
    table,
)
from art_aft.experiments.rows import Row

#: What the scan was measured on, and that it misses models there: docs/detection.md.
NOT_CLEARED = (
    "This does not clear the model. The scan was measured on digits, and on a few models of CIFAR-10 and GTSRB, on "
    "small residual, VGG, plain convolutional and transformer networks, with 1 to 10 % of the training images "
    "poisoned. It misses some of them; docs/detection.md tells which backdoors are not seen."
)

#: What to do where the scan cannot tell.
UNSURE = (
    "What helps: more clean images, of all classes, where a reason asks for them. Where a label stands out, scans of "
    "clean models of the same kind show whether it is usual (--reference). art-aft purify needs no verdict, and costs "
    "a clean model some accuracy."
)

_HARM = "Do not use the model where a wrong answer does harm."


def scan_report(report: Row, source: Source) -> str:
    """
    Return the report of a scan as a page.

    :param report: What `art-aft scan` writes to OUTPUT.json.
    :param source: Where it comes from.
    """
    return document(
        "Report of a backdoor scan",
        scan_verdict(report, source),
        section("Evidence", *_scan_evidence(report, source)),
        section("What was not looked at", listing(_scan_limits(report))),
        *ending(report, source),
    )


def scan_verdict(report: Row, source: Source) -> Verdict:
    """Return what the page of a scan says first; the parameters are those of `scan_report`."""
    rate = report.get("false_alarm_rate")
    rated: tuple[str, ...] = (
        ()
        if rate is None
        else (
            f"{100 * rate:.0f} % of the models that are known to be clean, with this one counted among them, score as "
            "high or higher.",
        )
    )
    rated += tuple(f"Note: {remark}." for remark in report["remarks"])
    if report["verdict"] == "infected":
        if report["kind"] == "all-to-all":
            goal = "another label than its own; which one for each label stands below"
        else:
            goal = " or ".join(map(source.label, report["targets"]))
        effect = f"The scan found signs of a backdoor: an image with the attacker's trigger would get {goal}."
        act = (
            f"{_HARM} Purify it with art-aft purify, or train it again on data that you trust.",
            "The label is a lead and no proof. Check it before anyone is blamed.",
        )
        return Verdict("bad", "A backdoor is reported", (effect, *rated, *act))
    if report["verdict"] == "no evidence":
        return Verdict("good", "Nothing was found", ("The scan found no sign of a backdoor.", *rated, NOT_CLEARED))
    reasons = (f"Why: {note}." for note in report["notes"])
    first = "The scan can neither report a backdoor nor say that it found nothing."
    return Verdict("unsure", "The scan cannot tell", (first, *reasons, *rated, _HARM, UNSURE))


def _scan_evidence(report: Row, source: Source) -> list[str]:
    """Return the pictures of a scan, as markup."""
    found: Sequence[Row] = sorted(report["evidence"], key=lambda each: -each["score"])
    if not found:
        return [paragraphs("No test could be applied.")]
    shares = report["label_matrix"]
    adversarial = [] if shares is None else [matrix("Labels of adversarial examples", shares)]
    parts = [
        paragraphs(
            "Each test looks for one label that stands out. A bar that reaches the line is a sign of a backdoor. Tests "
            "with weak signs decide together, as “agreement”."
        ),
        meters([(_title(e), e["score"], f"{e['score']:.2f}", e["score"] >= 1) for e in found], limit=1.0),
        table(
            ["test", "most suspicious", "statistic", "threshold", "details"],
            [[_title(e), _accused(e, source), f"{e['statistic']:.2f}", e["threshold"], e["details"]] for e in found],
        ),
    ]
    if report["kind"] == "all-to-all":
        pairs = [[source.label(label), source.label(to)] for label, to in enumerate(report["targets"])]
        parts += [heading("What the trigger would change"), table(["true label", "label with the trigger"], pairs)]
    pictures = [each for each in found if each.get("picture")]
    if pictures:
        parts += [
            heading("What leads images to the accused label"),
            paragraphs(
                "The tests that report a backdoor found these changes: each is shown as what it makes of a grey image. "
                "Added to images, it leads many of them to the label, or by the shift, that is named. It need not look "
                "like the attacker's trigger."
            ),
            gallery(*(image(f"{_title(each)}: {_accused(each, source)}", each["picture"]) for each in pictures)),
        ]
    parts += [
        heading("The score of each label"),
        paragraphs("The most suspicious label is marked. Of masks (“reversed trigger”), small ones are suspicious."),
        gallery(*map(_picture, found), *adversarial),
    ]
    return parts + classes(source)


def _picture(evidence: Row) -> str:
    """Return the scores of all labels, or shifts, as a picture."""
    title = f"{_title(evidence)}{', by shift of the label' * evidence['shift']}"
    return bars(title, evidence["scores"], first=int(evidence["shift"]), marked=evidence["label"])


def _title(evidence: Row) -> str:
    """Return how a reader calls a test."""
    return str(evidence["detector"]).replace("_", " ")


def _accused(evidence: Row, source: Source) -> str:
    """Return what the evidence points at."""
    return f"shift by {evidence['label']}" if evidence["shift"] else source.label(evidence["label"])


def _scan_limits(report: Row) -> list[str]:
    """Return what a scan did not look at."""
    omitted = ", ".join(name.replace("_", " ") for name in report["omitted"])
    return [
        f"Tests that did not run, or could not be applied: {omitted}." if omitted else "All tests ran.",
        f"{report['n_images']} clean images were given. Of many the scan draws some, and it uses those that the model "
        "gets right.",
        "Several backdoors in one model hide each other, and one that works on images of a single class may be missed. "
        "In both cases a wrong label may be accused.",
        "A backdoor that none of the tests can see is not seen.",
        "Neither the training data nor the program around the model were looked at.",
    ]
