"""The report of `art-aft purify` for a browser."""

from __future__ import annotations

from collections.abc import Mapping

from art_aft.experiments.reports.charts import bars, gallery, meters
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


def purification_report(report: Row, source: Source) -> str:
    """
    Return the report of a purification as a page.

    :param report: What `art-aft purify` writes to OUTPUT.report.json.
    :param source: Where it comes from.
    """
    return document(
        "Report of a purification",
        purification_verdict(report),
        section("Evidence", *_purification_evidence(report, source)),
        section("What was not looked at", listing(_purification_limits(report))),
        *ending(report, source, {"defence": report["defence"], **report["settings"]}),
    )


def purification_verdict(report: Row) -> Verdict:
    """Return what the page of a purification says first."""
    before, after = (100 * report[state]["held_out_accuracy"] for state in ("before", "after"))
    held = f"on {report['n_held_out']} clean images that were held out"
    numbers = f"It gets {after:.1f} % right {held}; before, {before:.1f} %."
    notes = [f"Note: {note}." for note in (*report["notes"], *report["remarks"])]
    if not report["finite"]:
        first = "No purified model was written, because its weights are NaN or infinite: training diverged."
        act = "Try a lower learning rate (`--set learning_rate=0.001`). The suspected model is as it was."
        return Verdict("bad", "Training diverged", (first, *notes, act))
    if not report["images_trusted"]:
        first = "No purified model was written, because the images cannot tell what the purification costs."
        act = "Mend what is named here, and purify again. The suspected model is as it was."
        return Verdict("unsure", "The images cannot tell", (first, *notes, act))
    if report.get("remaining_label") is not None:
        first = "No purified model was written, because one label still stands out in it, as in an infected model."
        act = "Give more clean images, or try another defence. `--set look_again=False` writes the model all the same."
        return Verdict("bad", "The backdoor may be left", (first, numbers, *notes, act))
    if not report["accepted"]:
        first = (
            f"No purified model was written, because it lost more than {100 * report['max_accuracy_drop']:g} points."
        )
        act = "Give more clean images, allow a larger loss, or try another defence. The suspected model is as it was."
        return Verdict("bad", "Too much accuracy was lost", (first, numbers, *notes, act))
    if not report["changed"]:
        first = "The defence changed nothing, so the model is as suspect as before."
        return Verdict("unsure", "The model is unchanged", (first, *notes, "Try another defence."))
    check = (
        "Whether the backdoor is gone was not measured, for nobody knows its trigger here. Scan the purified model "
        "before you use it."
    )
    return Verdict("good", "The model was purified", (f"A purified model was written. {numbers}", check, *notes))


def _purification_evidence(report: Row, source: Source) -> list[str]:
    """Return the pictures of a purification, as markup."""
    states = {"before": report["before"], "after": report["after"]}
    parts = [
        heading(f"Share of {report['n_held_out']} held-out images that the model gets right"),
        _percent_meters({name: state["held_out_accuracy"] for name, state in states.items()}),
        heading("Share of them that a small change of each image, an adversarial example, leads to a wrong label"),
        _percent_meters({name: state["adversarial_success"] for name, state in states.items()}),
        heading("Which wrong labels the adversarial examples get, in percent"),
        paragraphs(
            "A backdoor often draws them to its label. One high bar before, and none after, is a good sign, where "
            "there are more than a few images."
        ),
    ]
    shares = {name: [100 * share for share in state["adversarial_labels"]] for name, state in states.items()}
    counts = {name: round(state["adversarial_success"] * report["n_held_out"]) for name, state in states.items()}
    parts.append(gallery(*(bars(_counted(name, counts[name]), shares[name], most=100.0) for name in states)))
    if report.get("trials"):
        rows = [
            [number, f"{100 * trial['accuracy']:.1f}", "yes" if trial["accepted"] else "no", f"{trial['seconds']:.1f}"]
            for number, trial in enumerate(report["trials"], start=1)
        ]
        parts += [heading("What was tried"), table(["trial", "accuracy, %", "keeps enough", "seconds"], rows)]
    if report["stages"]:
        stages = [(each["name"], each["seconds"], f"{each['seconds']:.1f} s", False) for each in report["stages"]]
        parts += [heading("Where the time went"), meters(stages)]
    return parts + classes(source)


def _counted(name: str, count: int) -> str:
    """Return the title of a picture of some images."""
    return f"{name}: {count} image{'s' * (count != 1)}"


def _percent_meters(shares: Mapping[str, float]) -> str:
    """Return bars of shares, as markup."""
    return meters([(name, share, f"{100 * share:.1f} %", False) for name, share in shares.items()], most=1.0)


def _purification_limits(report: Row) -> list[str]:
    """Return what a purification did not look at."""
    return [
        "The attacker's trigger is not known, so the success of the attack was measured neither before nor after.",
        f"The accuracy rests on {report['n_held_out']} held-out images: one more wrong image is "
        f"{100 / report['n_held_out']:.1f} points.",
        f"Only {report['n_images']} clean images were used to purify. What they do not show may have been forgotten.",
        "Neither the training data nor the program around the model were looked at.",
    ]
