"""How to train, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from art_aft.checks import check_choice, check_flag, check_integer, check_number, check_seed, check_sequence
from art_aft.runtime.devices import PRECISIONS

SCHEDULES = ("constant", "cosine", "one_cycle")


@dataclass(frozen=True)
class Recipe:
    """
    How to train: stochastic gradient descent, in batches of augmented images.

    >>> Recipe(learning_rate=0.1, milestones=((2, 0.01),)).rate_at(3)
    0.01

    :param nb_epochs: Passes over the data.
    :param batch_size: Images a step.
    :param learning_rate: The (peak) learning rate of a new SGD optimizer. None continues with the classifier's own
        optimizer, whatever it is; momentum, weight decay and schedule are then its own.
    :param momentum: SGD's momentum, in [0, 1].
    :param weight_decay: SGD's weight decay.
    :param l2_sp: The weight of half the squared distance from the parameters at the start, which is added to the loss
        (L2-SP, https://arxiv.org/abs/1802.01483). 0 is none.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: The learning rate over the steps: "constant", "cosine" (to 0) or "one_cycle".
    :param milestones: Pairs (epoch, learning rate): from that epoch on, counted from 0, that rate. Only with
        schedule "constant".
    :param padding: Random crops: pad each side by this many pixels of the lowest value and cut at random. 0 is none.
    :param rotation: Random rotations by up to this many degrees either way.
    :param horizontal_flip: Whether half of the images are flipped left to right. Wrong for digits, letters and traffic
        signs.
    :param max_steps: The most steps, if that is fewer than `nb_epochs` make. None is no limit.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of order, augmentation and dropout.
    :raises ValueError: If a number is out of its range.
    """

    nb_epochs: int = 10
    batch_size: int = 128
    learning_rate: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    l2_sp: float = 0.0
    nesterov: bool = False
    schedule: str = "constant"
    milestones: tuple[tuple[int, float], ...] = ()
    padding: int = 0
    rotation: float = 0.0
    horizontal_flip: bool = False
    max_steps: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("nb_epochs", self.nb_epochs, 0)
        check_integer("batch_size", self.batch_size, 1)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, minimum=0.0, above=True)
        check_number("momentum", self.momentum, minimum=0.0, maximum=1.0)
        check_number("weight_decay", self.weight_decay, minimum=0.0)
        check_number("l2_sp", self.l2_sp, minimum=0.0)
        if check_flag("nesterov", self.nesterov) and self.momentum == 0:
            raise ValueError("nesterov: got True with momentum 0, expected a momentum above 0 with it")
        check_choice("schedule", self.schedule, SCHEDULES)
        self._check_milestones()
        check_integer("padding", self.padding, 0)
        check_number("rotation", self.rotation, minimum=0.0, maximum=180.0)
        check_flag("horizontal_flip", self.horizontal_flip)
        if self.max_steps is not None:
            check_integer("max_steps", self.max_steps, 0)
        check_choice("precision", self.precision, PRECISIONS)
        check_seed("seed", self.seed)

    def _check_milestones(self) -> None:
        for pair in check_sequence("milestones", self.milestones):
            if len(check_sequence("milestones", pair)) != 2:
                raise ValueError(f"milestones: got {pair!r}, expected pairs (epoch, learning rate)")
            check_integer("milestones", pair[0], 0)
            check_number("milestones", pair[1], minimum=0.0)
        if len(self.milestones) and self.schedule != "constant":
            raise ValueError(f"milestones: got some with schedule {self.schedule!r}, expected schedule 'constant'")

    def rate_at(self, epoch: int) -> float:
        """Return the learning rate in an epoch, by the milestones."""
        passed = [pair for pair in self.milestones if pair[0] <= epoch]
        return max(passed)[1] if passed else (self.learning_rate or 0.0)
