"""The readout's formulas, against the textbook."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from probes.errors import FitError
from probes.lens import Readout

RNG = np.random.default_rng(0)
READOUT = Readout(
    token_ids=np.array([7, 3]),
    label_index=np.array([0, 1]),
    unembed_rows=np.array([[1.0, 2.0], [0.0, -1.0]], dtype=np.float32),
    unembed_bias=np.array([0.5, 0.0], dtype=np.float32),
    norm_type="rms",
    norm_weight=np.array([2.0, 1.0], dtype=np.float32),
    norm_bias=np.zeros(2, dtype=np.float32),
    eps=0.0,
)


def test_by_hand():
    """x = (3, 4): rms = sqrt(12.5) = 3.5355; normed (0.84853 * 2, 1.13137 * 1) = (1.69706, 1.13137)."""
    x = np.array([3.0, 4.0])
    np.testing.assert_allclose(READOUT.token_logits(x, "raw"), [3 + 8 + 0.5, -4], rtol=1e-6)
    np.testing.assert_allclose(READOUT.token_logits(x, "norm"), [1.69706 + 2.26274 + 0.5, -1.13137], rtol=1e-5)
    layer = replace(READOUT, norm_type="layer", norm_bias=np.array([0.0, 1.0], dtype=np.float32))
    # Centred (-.5, .5) over its deviation .5 is (-1, 1); times (2, 1) plus (0, 1) is (-2, 2).
    np.testing.assert_allclose(layer.token_logits(x, "norm"), [-2 + 4 + 0.5, -2], rtol=1e-6)
    capped = replace(READOUT, logit_scale=0.5, softcap=1.0)
    np.testing.assert_allclose(capped.token_logits(x, "norm"), np.tanh([0.5 * 4.4598, 0.5 * -1.13137]), rtol=1e-4)
    # The raw lens knows neither scale nor cap.
    np.testing.assert_allclose(capped.token_logits(x, "raw"), [11.5, -4], rtol=1e-6)


def test_joined_spellings_are_the_probability_of_either():
    readout = replace(
        READOUT,
        token_ids=np.array([7, 8, 3, 4]),
        label_index=np.array([0, 0, 1, 1]),
        unembed_rows=RNG.normal(size=(4, 2)).astype(np.float32),
        unembed_bias=np.zeros(4, dtype=np.float32),
    )
    x = RNG.normal(size=(5, 3, 2))
    tokens = softmax(readout.token_logits(x).astype(np.float64), axis=-1)
    labels = softmax(readout.score_logits(x).astype(np.float64), axis=-1)
    np.testing.assert_allclose(labels[..., 0], tokens[..., 0] + tokens[..., 1], rtol=1e-5)
    assert readout.score_logits(x).shape == (5, 3, 2)


def test_labels_come_in_order_of_the_scale():
    backwards = replace(READOUT, label_index=np.array([1, 0]))
    np.testing.assert_array_equal(backwards.score_logits(np.ones(2)), READOUT.score_logits(np.ones(2))[::-1])


def test_the_digest_sees_every_part():
    digests = {READOUT.digest()}
    for change in (
        {"eps": 1e-6},
        {"norm_type": "layer"},
        {"softcap": 30.0},
        {"logit_scale": 2.0},
        {"unembed_rows": READOUT.unembed_rows + 1},
        {"norm_weight": READOUT.norm_weight + 1},
        {"label_index": np.array([1, 0])},
    ):
        digests.add(replace(READOUT, **change).digest())
    assert len(digests) == 8


def test_an_unknown_lens_lists_the_known():
    with pytest.raises(FitError) as error:
        READOUT.token_logits(np.ones(2), "tuned")
    assert str(error.value) == "unknown lens 'tuned': choose one of raw, norm"
