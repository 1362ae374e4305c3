"""What a scan finds: signs of a backdoor, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: From which strength on a sign alone raises an alarm: of "weights" one case in a hundred by chance, of the others as
#: set on eight digits models of seed 0; see `examples/results/scan_digits.json` for what others then gave.
ALARMS = {"weights": 2.0, "shared": 0.5, "shared_shift": 0.25, "labels": 0.25, "shift": 0.2, "size": 0.5}


@dataclass(frozen=True)
class Sign:
    """
    One kind of evidence.

    :param kind: "weights", "shared", "shared_shift", "labels", "shift" or "size".
    :param strength: How far the first hypothesis is ahead of the second, in [0, 1]; of "weights", -log10 of how likely
        it is by chance.
    :param label: The label that it speaks against; for the shifts the number that is added to the true label.
    :param where: At which perturbation it was strongest.
    :param values: The number behind it for each label (or shift, from 1), of shape (K,) or (K - 1,).
    """

    kind: str
    strength: float
    label: int
    where: str
    values: tuple[float, ...]

    @property
    def relative(self) -> bool:
        """Whether it speaks of shifts of the label, and so of an all-to-all backdoor."""
        return self.kind in ("shift", "shared_shift")

    @property
    def alarms(self) -> float:
        """The strength in units of what raises an alarm."""
        return self.strength / ALARMS[self.kind]


@dataclass(frozen=True)
class ScanReport:
    """
    What a scan found.

    :param verdict: "infected", "clean", or "cannot tell".
    :param kind: "all-to-one" or "all-to-all" where infected, else None.
    :param targets: The suspected labels of the attacker, the most suspicious first; all-to-all, the label that each
        class would be led to.
    :param score: The strongest sign in units of what raises an alarm.
    :param false_alarm_rate: How often a clean classifier has this score or more, by the reference; None without one.
    :param signs: All the evidence.
    :param label_matrix: The labels of the untargeted adversarial examples at the largest L-infinity ball: shares of
        shape (K, K), row = true label; None where they were not looked at.
    :param notes: Why the evidence is weak, where it is.
    :param seconds: How long it took.
    """

    verdict: str
    kind: str | None
    targets: tuple[int, ...]
    score: float
    false_alarm_rate: float | None
    signs: tuple[Sign, ...]
    label_matrix: np.ndarray | None = field(repr=False)
    notes: tuple[str, ...]
    seconds: float
