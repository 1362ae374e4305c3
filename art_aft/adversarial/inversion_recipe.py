"""How triggers are searched, and what the size of a mask costs on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from art_aft.checks import check_choice, check_integer, check_number, check_seed
from art_aft.runtime.devices import PRECISIONS


@dataclass(frozen=True)
class InversionRecipe:
    """
    How to search triggers. The defaults are those of Neural Cleanse's example for GTSRB.

    | Paper link: https://people.cs.uchicago.edu/~ravenben/publications/pdf/backdoor-sp19.pdf, section V

    :param steps: The most steps; a step is a pass over `images_per_step` images.
    :param images_per_step: Images a step, drawn anew for each.
    :param batch_size: Images of every class at a time.
    :param learning_rate: Adam's rate.
    :param norm: The mask's norm, 1 or 2.
    :param init_cost: The weight of the mask's norm, once the trigger works.
    :param success: The share of images, in (0, 1], that a working trigger leads to its label.
    :param patience: Steps of success (or failure) in a row before the cost rises (or falls).
    :param cost_multiplier: The factor by which the cost rises; it falls by this factor to the power 1.5.
    :param early_stop_threshold: A norm above this share of the best one is no improvement.
    :param early_stop_patience: Steps without improvement before the search of a label ends.
    :param classes_at_once: Number of classes whose triggers share a batch; None is as many as memory allows. Their
        results do not depend on each other.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of starting points and order.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    steps: int = 1000
    images_per_step: int = 1000
    batch_size: int = 32
    learning_rate: float = 0.1
    norm: int = 1
    init_cost: float = 1e-3
    success: float = 0.99
    patience: int = 5
    cost_multiplier: float = 2.0
    early_stop_threshold: float = 1.0
    early_stop_patience: int = 25
    classes_at_once: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "images_per_step", "batch_size", "patience", "early_stop_patience"):
            check_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "init_cost", "success", "cost_multiplier", "early_stop_threshold"):
            check_number(name, getattr(self, name), minimum=0.0, above=True)
        check_choice("norm", self.norm, (1, 2))
        if self.success > 1:
            raise ValueError(f"success: got {self.success}, expected a share in (0, 1]")
        if self.cost_multiplier <= 1:
            raise ValueError(f"cost_multiplier: got {self.cost_multiplier}, expected a number above 1")
        if self.classes_at_once is not None:
            check_integer("classes_at_once", self.classes_at_once, 1)
        check_choice("precision", self.precision, PRECISIONS)
        check_seed("seed", self.seed)


@dataclass
class CostController:
    """
    The weight of the norm of one label's mask in the loss, from step to step, and when to stop.

    The cost starts at 0. Once the trigger has worked for `patience` steps in a row, it is `init_cost`. From then on it
    rises while the trigger works, and falls while it does not.

    >>> controller = CostController(InversionRecipe(patience=2, init_cost=0.5))
    >>> for norm in (9.0, 8.0, 7.0):
    ...     controller.update(success=1.0, norm=norm), controller.cost
    (True, 0.0)
    (True, 0.5)
    (True, 1.0)

    :param recipe: The numbers.
    """

    recipe: InversionRecipe
    #: The weight as it is now.
    cost: float = field(default=0.0, init=False)
    #: The smallest norm of a trigger that works so far.
    best: float = field(default=float("inf"), init=False)
    #: Whether the search should end.
    stopped: bool = field(default=False, init=False)
    _works: int = field(default=0, init=False, repr=False)
    _up: int = field(default=0, init=False, repr=False)
    _down: int = field(default=0, init=False, repr=False)
    _rose: bool = field(default=False, init=False, repr=False)
    _fell: bool = field(default=False, init=False, repr=False)
    _idle: int = field(default=0, init=False, repr=False)

    def update(self, success: float, norm: float) -> bool:
        """
        Update the cost after a step.

        :param success: The share of images that the trigger led to the label.
        :param norm: The mask's norm.
        :return: Whether this is the best trigger so far: it works, and none that did was smaller.
        """
        recipe, works = self.recipe, success >= self.recipe.success
        before, improved = self.best, works and norm < self.best
        if improved:
            self.best = norm
        if self.best < float("inf"):
            self._idle = self._idle + 1 if self.best >= recipe.early_stop_threshold * before else 0
            self.stopped = self._rose and self._fell and self._idle >= recipe.early_stop_patience
        if self.cost == 0:
            self._works = self._works + 1 if works else 0
            if self._works == recipe.patience:
                self.cost = recipe.init_cost
                self._up = self._down = 0
                self._rose = self._fell = False
        self._up, self._down = (self._up + 1, 0) if works else (0, self._down + 1)
        if self._up == recipe.patience:
            self._up, self._rose = 0, True
            self.cost *= recipe.cost_multiplier
        elif self._down == recipe.patience:
            self._down, self._fell = 0, True
            self.cost /= recipe.cost_multiplier**1.5
        return improved
