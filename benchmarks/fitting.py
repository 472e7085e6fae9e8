"""Every aggregator fitted on 10,000 items x 33 layers x 5 labels, beside the usual tool for the same job.

Baselines, each on the same columns: `sklearn.model_selection.GridSearchCV` over the same penalties and folds for the
ridges, `sklearn.linear_model.LogisticRegression` for distributions, full-batch `torch.optim.Adam` for simplex weights,
stopped where it has the loss that ours has. All run on one thread, as ours do.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.bootstrap import shortest
from probes.aggregate import AGGREGATORS, LayerLogits, States, get_aggregator
from probes.fitting.ridge import PENALTIES
from probes.fitting.simplex import interpolated_target, mixture_loss
from probes.fitting.threads import one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

VALUES: Final = np.arange(1.0, 6.0)
LIMIT_S: Final = 3.0
D_MODEL: Final = 576
_EPOCHS: Final = 3000


def made_up(n_items: int, n_layers: int) -> tuple[LayerLogits, Float[np.ndarray, " item"]]:
    """Layers that show a quality more and more, each with an error of its own and one that neighbours share."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=n_items)
    shared = np.cumsum(rng.normal(size=(n_items, n_layers)), axis=1) / np.sqrt(n_layers)
    tilt = (VALUES - VALUES.mean()) / VALUES.std()
    level = np.linspace(0, 1, n_layers) * quality[:, None] + shared
    logits = level[:, :, None] * tilt + 0.3 * rng.normal(size=(n_items, n_layers, len(VALUES)))
    logits[:, 0] = logits[0, 0]
    y = np.clip(3 + quality + 0.5 * rng.normal(size=n_items), 1, 5)
    names = ("embed", *map(str, range(1, n_layers)))
    words = rng.integers(5000, size=(n_items, 12))
    fields = [{"response": " ".join(f"w{word}" for word in row)} for row in words]

    def states(layer: int) -> Float[np.ndarray, "item d_model"]:
        draw = np.random.default_rng(layer).normal(size=(n_items, D_MODEL)).astype(np.float32)
        return draw * bool(layer)

    return LayerLogits(logits.astype(np.float32), names, VALUES, "norm", States(states), fields), y


def grid_search(columns: Float[np.ndarray, "item column"], y: Float[np.ndarray, " item"]) -> Callable[[], object]:
    """The ridge of scikit-learn, with the penalties and the number of folds of ours."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": PENALTIES},
        cv=GroupKFold(5),
        scoring="neg_mean_squared_error",
    )
    return lambda: search.fit(columns, y, groups=np.arange(len(y)))


def logistic(columns: Float[np.ndarray, "item column"], y: Float[np.ndarray, " item"]) -> Callable[[], object]:
    """Multinomial regression at one penalty, on rounded labels: it knows no fractional ones."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return lambda: model.fit(columns, np.round(y).astype(int))


def adam(logits: LayerLogits, y: Float[np.ndarray, " item"], goal: float) -> Callable[[], object]:
    """Simplex weights by gradient steps on all items, until the loss is what ours is."""
    import torch

    data = torch.from_numpy(logits.logits)
    target = torch.from_numpy(interpolated_target(y, VALUES).astype(np.float32))
    human, values = torch.from_numpy(y.astype(np.float32)), torch.from_numpy(VALUES.astype(np.float32))

    def train() -> None:
        raw = torch.zeros(len(logits.layers), requires_grad=True)
        optimiser = torch.optim.Adam([raw], lr=0.05)
        for _ in range(_EPOCHS):
            optimiser.zero_grad()
            mixed = torch.einsum("l,ilk->ik", torch.softmax(raw, 0), data)
            error = (torch.softmax(mixed, 1) @ values - human).abs().mean()
            loss = 0.5 * torch.nn.functional.cross_entropy(mixed, target) + 0.5 * error
            if float(loss.detach()) <= goal * 1.0005:
                return
            loss.backward()
            optimiser.step()

    return train


def recipe(logits: LayerLogits, y: Float[np.ndarray, " item"]) -> Callable[[], object]:
    """LAGER's own recipe in torch: one epoch of Adam in batches of four."""
    import torch

    data = torch.from_numpy(logits.logits)
    label = torch.from_numpy(np.round(y).astype(np.int64) - 1)
    human, values = torch.from_numpy(y.astype(np.float32)), torch.from_numpy(VALUES.astype(np.float32))

    def train() -> None:
        raw = torch.zeros(len(logits.layers), requires_grad=True)
        optimiser = torch.optim.Adam([raw], lr=0.01)
        for batch in torch.randperm(len(data)).split(4):
            optimiser.zero_grad()
            mixed = torch.einsum("l,ilk->ik", torch.softmax(raw, 0), data[batch])
            error = (torch.softmax(mixed, 1) @ values - human[batch]).abs().mean()
            (0.5 * torch.nn.functional.cross_entropy(mixed, label[batch]) + 0.5 * error).backward()
            optimiser.step()

    return train


def main(n_items: int = 10_000, n_layers: int = 33) -> None:
    """Time every aggregator, then the baselines."""
    import torch

    torch.set_num_threads(1)
    logits, y = made_up(n_items, n_layers)
    groups = np.arange(n_items)
    seconds = {}
    print(f"{n_items:,} items, {n_layers} layers, {len(VALUES)} labels; states of {D_MODEL}")
    for name in [*(f"{name}:2" if kind.argument else name for name, kind in AGGREGATORS.items()), "uniform@tuned"]:
        lens = "" if "@" in name else "@norm"
        aggregator = get_aggregator(name + lens)
        slow = name in ("residual-ridge", "text-ridge")
        start = time.perf_counter()
        fitted = aggregator.fit(logits, y, groups)
        seconds[name] = time.perf_counter() - start
        if not slow:
            seconds[name] = min(seconds[name], shortest(partial(aggregator.fit, logits, y, groups)))
        if name == "lager":
            weights = np.maximum(fitted.layer_weights(), 1e-12)
            stack = np.ascontiguousarray(np.moveaxis(logits.logits, 1, 0), dtype=np.float64)
            target = interpolated_target(y, VALUES)
            goal = mixture_loss(stack, np.log(weights), target, y, VALUES, 0.5)[0]
    flat, last = logits.logits.reshape(n_items, -1), logits.logits[:, -1]
    with one_blas_thread():
        baselines = {
            "final-ridge": ("GridSearchCV", shortest(grid_search(last, y))),
            "logit-ridge": ("GridSearchCV", shortest(grid_search(flat, y))),
            "spectral-ridge": ("GridSearchCV", 0.0),
            "spectral-ordinal": ("LogisticRegression, one penalty", shortest(logistic(flat, y))),
            "lager": ("torch Adam on all items, to the same loss", shortest(adam(logits, y, goal))),
            "lager-schedule": ("torch, the same recipe", shortest(recipe(logits, y))),
        }
    baselines["spectral-ridge"] = baselines["logit-ridge"]
    print(f"{'judge':22}{'s':>8}   ratio to its baseline")
    for name, found in seconds.items():
        flag = "" if found < LIMIT_S else f"   over {LIMIT_S:g} s"
        beside = f"   {found / baselines[name][1]:.3f} x {baselines[name][0]}" if name in baselines else ""
        print(f"{name:22}{found:8.2f}{beside}{flag}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=33)
    asked = parser.parse_args()
    main(asked.items, asked.layers)
