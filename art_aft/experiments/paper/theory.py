"""
The paper's Section V in numbers: a backdoor in a linear classifier, and the direction of its universal perturbation.

The printed text mixes a mean and a sum over samples and has a few errors. The claims E1 to E5 hold exactly. Lemma 1 and
Theorem 1 are here twice: as printed, with ell, the number of triggered samples; and in the consistent reading for a
mean loss, with rho = ell / n instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from art_aft.checks import check_choice, check_integer, check_number, check_seed

SQRT2 = math.sqrt(2)


@dataclass(frozen=True)
class LinearBackdoor:
    """
    A linear classifier with a clean-label backdoor, and the same one without. Both are trained to the optimum.

    All numbers are for a mean loss: F(W) = mean of the cross entropy + (lam / 2) ||W||_F^2.

    :param x: Clean samples of unit length in an m-dimensional subspace S, of shape (n, d).
    :param y: Their labels, of shape (n,).
    :param triggered: Which samples get the trigger. All are of the target class and keep their label.
    :param trigger: The trigger P, orthogonal to S, of shape (d,).
    :param target: The target class l.
    :param lam: The weight decay, for a mean loss.
    :param w: The infected classifier W*, of shape (d, K).
    :param w_benign: The benign one, trained without triggers.
    """

    x: np.ndarray
    y: np.ndarray
    triggered: np.ndarray
    trigger: np.ndarray
    target: int
    lam: float
    w: np.ndarray
    w_benign: np.ndarray

    @property
    def x_trained(self) -> np.ndarray:
        """The samples that the infected classifier was trained on."""
        return self.x + self.triggered[:, np.newaxis] * self.trigger

    @property
    def rho(self) -> float:
        """The share of triggered samples, ell / n."""
        return float(self.triggered.mean())

    @property
    def ell(self) -> int:
        """The number of triggered samples."""
        return int(self.triggered.sum())

    @property
    def p_norm(self) -> float:
        """|P|."""
        return float(np.linalg.norm(self.trigger))

    @property
    def u(self) -> np.ndarray:
        """The weight of each class along the trigger: W* = w_parallel + P u^T (E1), of shape (K,)."""
        return self.trigger @ self.w / self.p_norm**2

    @property
    def w_parallel(self) -> np.ndarray:
        """The part of W* that is orthogonal to the trigger, of shape (d, K)."""
        return self.w - np.outer(self.trigger, self.u)

    @property
    def p_bar(self) -> np.ndarray:
        """The mean softmax of the triggered samples, of shape (K,)."""
        return softmax(self.x_trained[self.triggered] @ self.w, axis=1).mean(axis=0)

    @property
    def tau(self) -> float:
        """The smallest margin of the benign classifier over all clean samples."""
        logits = self.x @ self.w_benign
        own = logits[np.arange(len(self.y)), self.y]
        logits[np.arange(len(self.y)), self.y] = -np.inf
        return float((own - logits.max(axis=1)).min())

    @property
    def u_exact(self) -> np.ndarray:
        """The value of u at the optimum (E2): (rho / lam) (e_l - p_bar)."""
        return self.rho / self.lam * (np.eye(len(self.p_bar))[self.target] - self.p_bar)

    @property
    def shift(self) -> float:
        """||W_parallel - W_benign||_F, the distance by which the backdoor moves the classifier on clean samples."""
        return float(np.linalg.norm(self.w_parallel - self.w_benign))

    @property
    def shift_bound(self) -> float:
        """An upper bound on the shift (E3)."""
        u_l = float(self.u[self.target])
        return self.rho / self.lam * min(SQRT2, self.p_norm**2 * u_l / SQRT2)

    @property
    def perturbation(self) -> np.ndarray:
        """
        The direction, of unit length, of the perturbation that leads all samples of other classes to the target class
        (E4): alpha P + v, from the mean differences of their weights.
        """
        others = self.y[self.y != self.target]
        direction = (self.w[:, [self.target]] - self.w[:, others]).mean(axis=1)
        return direction / np.linalg.norm(direction)

    @property
    def ratio(self) -> float:
        """The share of that perturbation along the trigger, |r_perp| / |r|."""
        return float(abs(self.perturbation @ self.trigger) / self.p_norm)

    @property
    def ratio_bound(self) -> float:
        """A lower bound on that share (E5). The weight decay cancels."""
        p = softmax(self.x_trained @ self.w, axis=1)
        errors = np.abs(np.eye(p.shape[1])[self.y] - p).mean(axis=0)
        a = self.rho * (1 - self.p_bar[self.target]) * self.p_norm
        b = errors[self.target] + np.delete(errors, self.target).max()
        return float(a / math.hypot(a, b))

    def lemma_upper(self, *, printed: bool = False) -> float:
        """Return Lemma 1's upper bound on the shift."""
        return self._amount(printed) / (SQRT2 * self.lam)

    def lemma_lower(self, *, printed: bool = False) -> float:
        """Return Lemma 1's lower bound on u_l. In the consistent reading it holds if 1 - p_bar_l >= 0.2929 |P|^2."""
        return (SQRT2 - 1) * self._amount(printed) / (SQRT2 * self.lam)

    def theorem_bound(self, *, printed: bool = False) -> float:
        """Return Theorem 1's lower bound on the share of the perturbation along the trigger."""
        nb_classes = self.w.shape[1]
        a = (SQRT2 - 1) * self._amount(printed) / SQRT2
        b = self._amount(printed) / SQRT2 + nb_classes / (math.exp(self.tau) + nb_classes)
        return a / math.hypot(a, b)

    def _amount(self, printed: bool) -> float:
        return (self.ell if printed else self.rho) * self.p_norm**2


def linear_backdoor(
    nb_classes: int = 5,
    n_per_class: int = 40,
    m: int = 12,
    d: int = 20,
    *,
    sigma: float = 0.05,
    lam: float = 0.05,
    ell: int = 8,
    p_norm: float = 1.0,
    target: int = 0,
    seed: int = 0,
    loss: str = "mean",
) -> LinearBackdoor:
    """
    Make data with a clean-label backdoor, and solve for the infected and the benign classifier.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section V)

    :param nb_classes: The number of classes K.
    :param n_per_class: Samples of each class.
    :param m: The dimension of the subspace S of the samples, at least K.
    :param d: The dimension of the space, above m.
    :param sigma: The spread of a class around its mean.
    :param lam: The weight decay.
    :param ell: The number of samples of the target class that get the trigger.
    :param p_norm: The trigger's length |P|.
    :param target: The target class l.
    :param seed: The seed of the data.
    :param loss: Whether `lam` belongs to the "mean" or to the "sum" of the losses.
    :raises ValueError: If a number is out of its range.
    """
    _check_sizes(nb_classes, n_per_class, m, d, ell, target)
    check_number("sigma", sigma, minimum=0.0)
    for name, value in (("lam", lam), ("p_norm", p_norm)):
        check_number(name, value, minimum=0.0, above=True)
    check_choice("loss", loss, ("mean", "sum"))
    rng = np.random.default_rng(check_seed("seed", seed))
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    y = np.repeat(np.arange(nb_classes), n_per_class)
    inside = np.eye(m)[y] + sigma * rng.normal(size=(len(y), m))
    inside /= np.linalg.norm(inside, axis=1, keepdims=True)
    triggered = np.zeros(len(y), dtype=bool)
    triggered[np.flatnonzero(y == target)[:ell]] = True
    mean_lam = lam if loss == "mean" else lam / len(y)
    # The optimum is in the span of the samples, so m + 1 coordinates are enough.
    infected = _optimum(np.column_stack([inside, np.where(triggered, p_norm, 0.0)]), y, nb_classes, mean_lam)
    benign = _optimum(inside, y, nb_classes, mean_lam)
    return LinearBackdoor(
        x=inside @ basis[:, :m].T,
        y=y,
        triggered=triggered,
        trigger=p_norm * basis[:, m],
        target=target,
        lam=mean_lam,
        w=basis[:, : m + 1] @ infected,
        w_benign=basis[:, :m] @ benign,
    )


def _check_sizes(nb_classes: int, n_per_class: int, m: int, d: int, ell: int, target: int) -> None:
    """Check that there are such classes, samples and dimensions."""
    check_integer("nb_classes", nb_classes, 2)
    check_integer("n_per_class", n_per_class, 1)
    if check_integer("m", m, 1) < nb_classes:
        raise ValueError(f"m: got {m}, expected at least the {nb_classes} classes")
    if check_integer("d", d, 1) <= m:
        raise ValueError(f"d: got {d}, expected more than m = {m}")
    if check_integer("ell", ell, 1) > n_per_class:
        raise ValueError(f"ell: got {ell}, expected at most the {n_per_class} samples of the target class")
    if check_integer("target", target, 0) >= nb_classes:
        raise ValueError(f"target: got {target}, expected less than {nb_classes}")


def _optimum(x: np.ndarray, y: np.ndarray, nb_classes: int, lam: float) -> np.ndarray:
    """Return the weights of shape (features, classes) at which the gradient of the regularised mean loss is zero."""
    shape, n = (x.shape[1], nb_classes), len(y)
    one_hot = np.eye(nb_classes)[y]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        logits = x @ w
        loss = -(one_hot * log_softmax(logits, axis=1)).sum() / n + lam / 2 * (w**2).sum()
        return loss, (x.T @ (softmax(logits, axis=1) - one_hot) / n + lam * w).ravel()

    options = {"maxiter": 5000, "gtol": 1e-9, "ftol": 0.0}
    flat = minimize(
        loss_and_gradient, np.zeros(x.shape[1] * nb_classes), jac=True, method="L-BFGS-B", options=options
    ).x
    # Line searches end at rounding errors. A few steps of Newton's method go on.
    for _ in range(10):
        gradient = loss_and_gradient(flat)[1]
        if np.abs(gradient).max() < 1e-14:
            break
        p = softmax(x @ flat.reshape(shape), axis=1)
        curvature = np.einsum("ij,jk->ijk", p, np.eye(nb_classes)) - np.einsum("ij,ik->ijk", p, p)
        hessian = np.einsum("ia,ijk,ib->ajbk", x, curvature, x, optimize=True) / n
        hessian = hessian.reshape(len(flat), len(flat)) + lam * np.eye(len(flat))
        flat = flat - np.linalg.solve(hessian, gradient)
    return flat.reshape(shape)
