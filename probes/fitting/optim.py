"""Adam and the plateau schedule, step for step as PyTorch defines them, so that a recipe needs no torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class Adam:
    """Adam (arXiv 1412.6980, algorithm 1) with the order of operations of ``torch.optim.Adam``.

    Args:
        size: Number of parameters.
        lr: Step size; may be changed between steps.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment *after* its bias correction.
    """

    def __init__(self, size: int, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.lr = lr
        self._betas = betas
        self._eps = eps
        self._steps = 0
        self._mean = np.zeros(size)
        self._square = np.zeros(size)

    def step(
        self, parameters: Float[np.ndarray, " parameter"], gradient: Float[np.ndarray, " parameter"]
    ) -> Float[np.ndarray, " parameter"]:
        """Parameters after one step down the gradient."""
        first, second = self._betas
        self._steps += 1
        self._mean += (1 - first) * (gradient - self._mean)
        self._square = second * self._square + (1 - second) * gradient * gradient
        root = np.sqrt(self._square) / np.sqrt(1 - second**self._steps) + self._eps
        return np.asarray(parameters - self.lr / (1 - first**self._steps) * self._mean / root)


class Plateau:
    """``torch.optim.lr_scheduler.ReduceLROnPlateau`` in its ``min`` mode with a relative threshold.

    Args:
        optimiser: Whose ``lr`` to lower.
        factor: What to multiply it by.
        patience: Steps without improvement that are forgiven.
        min_lr: Floor of the step size.
        threshold: An improvement is a loss below ``best * (1 - threshold)``.
    """

    def __init__(self, optimiser: Adam, factor: float, patience: int, min_lr: float, threshold: float = 1e-4) -> None:
        self._optimiser = optimiser
        self._factor = factor
        self._patience = patience
        self._min_lr = min_lr
        self._threshold = threshold
        self._best = np.inf
        self._bad = 0

    def step(self, loss: float) -> None:
        """Take note of an epoch's loss and lower the step size if it no longer falls."""
        # torch compares with best * (1 - threshold), which is what it is for a negative best, too.
        if loss < self._best * (1 - self._threshold):
            self._best, self._bad = loss, 0
        else:
            self._bad += 1
        if self._bad > self._patience:
            lowered = max(self._optimiser.lr * self._factor, self._min_lr)
            if self._optimiser.lr - lowered > 1e-8:
                self._optimiser.lr = lowered
            self._bad = 0
