"""LAGER's loss, its optimisers, and both recipes, against numbers worked by hand and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from probes.aggregate import LayerLogits, get_aggregator
from probes.fitting.optim import Adam, Plateau
from probes.fitting.simplex import (
    _Newton,
    fit_converged,
    fit_schedule,
    floor_label,
    interpolated_target,
    mixture_loss,
)

VALUES = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
UNEVEN = np.array([0.0, 1.0, 4.0, 10.0])


def draw(n_items=40, n_layers=5, values=VALUES, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(n_items, n_layers, len(values)))
    y = rng.uniform(values[0], values[-1], n_items)
    return logits, y


def planted(n_items, weights, scale, seed):
    """Items whose label is drawn from the softmax of a known mixture of layers."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(n_items, len(weights), 5))
    probs = softmax(np.asarray(weights) @ logits, axis=1)
    label = (probs.cumsum(axis=1) > rng.random((n_items, 1))).argmax(axis=1)
    return logits.astype(np.float32), VALUES[label], probs @ VALUES


def test_loss_and_gradient_of_the_worked_example():
    # Labels 1, 2, 3; layer 0 says (0, 0, 0), layer 1 says (0, 2 ln 2, 2 ln 2); equal weights mix them to
    # (0, ln 2, ln 2), so p = (1, 2, 2) / 5 and the expected score is .2 + .8 + 1.2 = 2.2.
    # The human score 2.5 lies half-way between labels 2 and 3: target (0, .5, .5).
    # Cross-entropy: -ln .4 = .9162907; absolute error .3.
    # Slope in the logits at alpha = .25: .25 (p - t) - .75 p (v - s) = (.05 + .18, -.025 + .06, -.025 - .24)
    # = (.23, .035, -.265); layer 1 weighs it 2 ln 2 (.035 - .265) = -.3188477; layer 0 weighs it 0.
    # Through the softmax: .5 (0 + .1594238) = .0797119 for layer 0, and the opposite for layer 1.
    values = np.array([1.0, 2.0, 3.0])
    stack = np.array([[[0.0, 0.0, 0.0]], [[0.0, 2 * math.log(2), 2 * math.log(2)]]])
    y = np.array([2.5])
    target = interpolated_target(y, values)
    np.testing.assert_allclose(target, [[0.0, 0.5, 0.5]])
    loss, gradient = mixture_loss(stack, np.zeros(2), target, y, values, 0.25)
    assert loss == pytest.approx(0.25 * 0.9162907 + 0.75 * 0.3, abs=1e-6)
    np.testing.assert_allclose(gradient, [0.0797119, -0.0797119], atol=1e-6)
    squared, _ = mixture_loss(stack, np.zeros(2), target, y, values, 0.25, score_loss="square")
    assert squared == pytest.approx(0.25 * 0.9162907 + 0.75 * 0.09, abs=1e-6)
    fitted = get_aggregator("uniform").fit(LayerLogits(np.moveaxis(stack, 0, 1), ("a", "b"), values, "raw"))
    scores = fitted.predict(LayerLogits(np.moveaxis(stack, 0, 1), ("a", "b"), values, "raw"))
    np.testing.assert_allclose(scores.probs, [[0.2, 0.4, 0.4]])
    np.testing.assert_allclose(scores.value, [2.2])


def test_target_interpolates_between_neighbours_of_unequal_distance():
    target = interpolated_target(np.array([0.0, 0.25, 1.0, 3.0, 10.0, -5.0, 12.0]), UNEVEN)
    np.testing.assert_allclose(target @ UNEVEN, [0.0, 0.25, 1.0, 3.0, 10.0, 0.0, 10.0])
    np.testing.assert_allclose(target[3], [0, 1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(target[1], [0.75, 0.25, 0, 0])


def test_flooring_takes_the_label_below():
    y = np.array([-1.0, 0.0, 0.9, 1.0, 3.99, 4.0, 9.0, 10.0, 11.0])
    assert floor_label(y, UNEVEN).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def torch_loss(stack, a, target, y, values, alpha, score_loss, smoothing):
    weights = torch.softmax(a, 0)
    mixed = torch.einsum("l,lik->ik", weights, torch.as_tensor(stack))
    log_probs = torch.log_softmax(mixed, 1)
    residual = log_probs.exp() @ torch.as_tensor(values) - torch.as_tensor(y)
    if score_loss == "square":
        error = residual**2
    elif smoothing:
        error = torch.sqrt(residual**2 + smoothing**2)
    else:
        error = residual.abs()
    cross_entropy = -(torch.as_tensor(target) * log_probs).sum(1)
    return (alpha * cross_entropy + (1 - alpha) * error).mean()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("score_loss", "smoothing"), [("abs", 0.0), ("abs", 0.05), ("square", 0.0)])
@pytest.mark.parametrize("values", [VALUES, UNEVEN])
def test_gradient_and_hessian_equal_autograd(alpha, score_loss, smoothing, values):
    logits, y = draw(values=values)
    stack, target = np.moveaxis(logits, 1, 0), interpolated_target(y, values)
    a = np.random.default_rng(1).normal(size=logits.shape[1])
    loss, gradient = mixture_loss(stack, a, target, y, values, alpha, score_loss=score_loss, smoothing=smoothing)
    tensor = torch.tensor(a, requires_grad=True)
    expected = torch_loss(stack, tensor, target, y, values, alpha, score_loss, smoothing)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-10)
    if smoothing:
        newton = _Newton(np.ascontiguousarray(stack), target, y, values, alpha, smoothing)
        curvature = torch.autograd.functional.hessian(
            lambda t: torch_loss(stack, t, target, y, values, alpha, score_loss, smoothing), torch.tensor(a)
        )
        pin = newton.hessian(a) - curvature.numpy()  # the constant that pins the direction softmax ignores
        np.testing.assert_allclose(pin, np.full_like(pin, pin[0, 0]), atol=1e-10)
        assert newton.value(a) == pytest.approx(loss + 0.5 * pin[0, 0] * a.sum() ** 2, abs=1e-12)


def test_subgradient_of_the_absolute_error_is_zero_at_its_kink():
    values = np.array([1.0, 2.0, 3.0])
    stack = np.array([[[0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])  # symmetric: the expected score is 2 whatever a is
    target = interpolated_target(np.array([2.0]), values)
    _, gradient = mixture_loss(stack, np.zeros(2), target, np.array([2.0]), values, 0.0)
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


def test_large_logits_neither_overflow_nor_lose_the_target():
    stack = 700.0 * np.array([[[1.0, 0, 0, 0, 0]], [[0, 0, 0, 0, 1.0]]])
    y = np.array([5.0])
    loss, gradient = mixture_loss(stack, np.array([5.0, -5.0]), interpolated_target(y, VALUES), y, VALUES, 0.5)
    assert np.isfinite(loss)
    assert loss > 300
    assert gradient[1] < 0 < gradient[0]


def test_adam_takes_the_steps_of_torch():
    logits, y = draw(n_items=8)
    stack, target = np.moveaxis(logits, 1, 0), interpolated_target(y, VALUES)
    a, adam = np.zeros(5), Adam(5, 0.01)
    tensor = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    reference = torch.optim.Adam([tensor], lr=0.01)
    for _ in range(100):
        _, gradient = mixture_loss(stack, a, target, y, VALUES, 0.5)
        reference.zero_grad()
        torch_loss(stack, tensor, target, y, VALUES, 0.5, "abs", 0.0).backward()
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-6)
        reference.step()
        a = adam.step(a, gradient)
        np.testing.assert_allclose(a, tensor.detach().numpy(), atol=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=30))
def test_plateau_lowers_the_step_as_torch_does(losses):
    adam = Adam(1, 0.01)
    plateau = Plateau(adam, factor=0.5, patience=1, min_lr=1e-3)
    reference = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, factor=0.5, patience=1, min_lr=1e-3)
    for loss in losses:
        plateau.step(loss)
        scheduler.step(loss)
        assert adam.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize("scale", [4.0, 40.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_planted_weights_are_recovered(alpha, scale):
    weights = np.array([0.0, 0.1, 0.0, 0.5, 0.15, 0.0, 0.25, 0.0])
    logits, label, expected = planted(4000, weights, scale, seed=3)
    # The absolute error alone aims at the expected score itself: of a drawn label it would find the median.
    found = fit_converged(logits, expected if alpha == 0 else label, VALUES, alpha)
    assert found.converged
    assert found.weights.sum() == pytest.approx(1)
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights, weights, atol=0.05)


def test_converged_fit_is_a_minimum_and_repeats():
    logits, y = draw(n_items=200, n_layers=6, seed=5)
    logits[:, 2] += 2 * (y[:, None] - 3) * (VALUES - 3)
    found = fit_converged(logits, y, VALUES, 0.5)
    assert found.converged
    assert found.weights.argmax() == 2
    assert found.weights[2] > 0.3
    stack, target = np.moveaxis(logits, 1, 0), interpolated_target(y, VALUES)
    rng = np.random.default_rng(0)
    for other in [*np.eye(6), *rng.dirichlet(np.ones(6), 20)]:
        nearby = 0.97 * found.weights + 0.03 * other
        assert mixture_loss(stack, np.log(nearby + 1e-300), target, y, VALUES, 0.5)[0] > found.loss - 1e-4
    np.testing.assert_array_equal(found.weights, fit_converged(logits, y, VALUES, 0.5).weights)


def test_ten_thousand_items_converge():
    logits, y, _ = planted(10_000, np.full(33, 1 / 33), 10.0, seed=0)
    assert fit_converged(logits, y, VALUES, 0.5).converged


def test_schedule_is_adam_in_batches_of_four_in_numpys_order():
    logits, y = draw(n_items=11)
    stack, target = torch.tensor(np.moveaxis(logits, 1, 0)), interpolated_target(y, VALUES)
    tensor = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([tensor], lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=1, min_lr=1e-3)
    rng = np.random.default_rng(42)
    for _ in range(3):
        order, losses = rng.permutation(11), []
        for batch in (order[0:4], order[4:8], order[8:11]):
            adam.zero_grad()
            loss = torch_loss(stack[:, batch], tensor, target[batch], y[batch], VALUES, 0.3, "abs", 0.0)
            loss.backward()
            adam.step()
            losses.append(loss.item())
        scheduler.step(np.mean(losses))
    found = fit_schedule(logits, y, VALUES, 0.3, epochs=3)
    np.testing.assert_allclose(found.weights, torch.softmax(tensor, 0).detach().numpy(), atol=1e-9)
    one = fit_schedule(logits, y, VALUES, 0.3)
    assert np.abs(one.weights - found.weights).max() > 1e-3


def test_released_recipe_drops_the_last_layer_squares_and_floors():
    logits, y = draw(n_items=12, n_layers=4)
    found = get_aggregator("lager-released").fit(LayerLogits(logits, tuple("abcd"), VALUES, "raw"), y)
    weights = found.layer_weights()
    assert weights[-1] == 0
    assert weights.sum() == pytest.approx(1)
    label = np.floor(y).astype(int)
    stack = torch.tensor(np.moveaxis(logits[:, :3], 1, 0))
    tensor = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([tensor], lr=0.01)
    order = np.random.default_rng(42).permutation(12)
    share = 1 / (1 + math.exp(-0.5))
    for batch in order.reshape(3, 4):
        adam.zero_grad()
        target = np.eye(5)[label[batch] - 1]
        torch_loss(stack[:, batch], tensor, target, label[batch].astype(float), VALUES, share, "square", 0.0).backward()
        adam.step()
    np.testing.assert_allclose(weights[:3], torch.softmax(tensor, 0).detach().numpy(), atol=1e-9)
