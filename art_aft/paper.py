"""The paper's own figures (Mu et al., arXiv 2202.06312), to stand beside what is measured here. Percent."""

from __future__ import annotations

Score = tuple[float, float]

ATTACKS = ("badnets", "blend", "sig", "input_aware", "wanet")


def _by_attack(*scores: Score) -> dict[str, Score]:
    return dict(zip(ATTACKS, scores, strict=False))


# (ACC, ASR) by defence and attack. Table II: CIFAR-10, all-to-one, poisoning ratio 10 %, 5 % clean data.
TABLE_2: dict[str, dict[str, Score]] = {
    "none": _by_attack((85.55, 100.00), (85.07, 99.04), (84.02, 98.78), (94.65, 99.24), (94.15, 99.50)),
    "fine_tuning": _by_attack((81.13, 14.17), (81.03, 26.54), (80.98, 10.21), (94.00, 8.77), (93.42, 12.80)),
    "fine_pruning": _by_attack((80.32, 80.37), (80.97, 71.31), (80.33, 72.10), (89.91, 98.97), (89.86, 99.36)),
    "neural_cleanse": _by_attack((82.22, 2.43), (82.32, 2.63), (81.78, 2.79), (94.65, 99.24), (94.15, 99.50)),
    "nad": _by_attack((81.30, 4.36), (82.90, 4.84), (82.00, 2.25), (94.23, 4.59), (94.02, 8.37)),
    "aft": _by_attack((81.79, 2.37), (81.68, 3.88), (82.34, 2.67), (93.25, 1.62), (94.06, 1.46)),
}
