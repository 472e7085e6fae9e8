"""What an architecture allows, and how far two captures may differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probes.capturing.engine import PassResult

if TYPE_CHECKING:
    from probes.lens import Readout

# Position encodings under which a state depends on the tokens in front of it only, not on the pass's length.
_LENGTH_FREE_ROPE: Final = {"default", "linear", "llama3", "yarn", "proportional"}
# Models whose keys and values in a cache are all there is to their past.
_STATEFUL: Final = ("mamba", "rwkv", "recurrent", "jamba", "hybrid", "zamba", "bamba", "lfm2", "linear_attn")


def prefix_sharing_refusal(config: Any) -> str | None:
    """Why a reused prefix would give other states in this architecture; None where it gives the same.

    Args:
        config: The model's Hugging Face config.
    """
    config = getattr(config, "text_config", None) or config
    kind = str(getattr(config, "model_type", ""))
    layer_types = set(getattr(config, "layer_types", None) or [])
    if any(word in kind for word in _STATEFUL) or any("linear" in t or "mamba" in t for t in layer_types):
        return f"{kind} keeps a recurrent state"
    if getattr(config, "alibi", False) or kind in {"bloom", "mpt"}:
        return f"{kind} uses ALiBi position biases"
    sliding = layer_types & {"sliding_attention", "chunked_attention"}
    if sliding or (not layer_types and getattr(config, "sliding_window", None)):
        return f"{kind} has sliding-window layers"
    for rope in _rope_types(config):
        if rope not in _LENGTH_FREE_ROPE:
            return f"{rope} RoPE depends on the longest sequence of a pass"
    return None


def batching_refusal(config: Any) -> str | None:
    """Why prompts of different lengths must not share a pass in this architecture; None where they may."""
    config = getattr(config, "text_config", None) or config
    for rope in _rope_types(config):
        if rope not in _LENGTH_FREE_ROPE:
            return f"{rope} RoPE depends on the longest sequence of a pass"
    return None


def _rope_types(config: Any) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(parameters, dict):
        return set()
    # Models with several attention types keep one set of parameters a type.
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(p.get("rope_type") or p.get("type") or "default") for p in (nested or [parameters])}


@dataclass(frozen=True)
class Deviation:
    """How far one capture of the same prompts is from another.

    Attributes:
        residual: Largest norm of a difference over the norm of the state, over rows and layers.
        norm_logits: Largest absolute difference of ``norm`` logits.
        raw_logits: Largest difference of ``raw`` logits, relative to the largest ``raw`` logit.
        largest_logit: Largest absolute ``norm`` logit, which scales what is allowed.
    """

    residual: float
    norm_logits: float
    raw_logits: float
    largest_logit: float

    def within(self, dtype: str) -> bool:
        """Whether the deviation is within the tolerances of a dtype (NaN is not)."""
        if dtype == "float32":
            return (
                self.residual <= RESIDUAL_TOLERANCE
                and self.norm_logits <= logit_tolerance(dtype, self.largest_logit)
                and self.raw_logits <= RESIDUAL_TOLERANCE
            )
        return self.norm_logits <= logit_tolerance(dtype, self.largest_logit)


RESIDUAL_TOLERANCE: Final = 1e-5
# Allowed deviation of `norm` logits, per unit of the largest of them, and what the largest counts as at least.
# bfloat16 rounds by up to 2^-8 relative; sums of roundings stay below four of these.
_LOGIT_TOLERANCES: Final = {"float32": (1e-4 / 32, 32.0)}
_HALF_TOLERANCE: Final = (2.0**-6, 1.0)


def logit_tolerance(dtype: str, largest_logit: float) -> float:
    """Allowed absolute deviation of ``norm`` logits, given the largest of them."""
    per_unit, least = _LOGIT_TOLERANCES.get(dtype, _HALF_TOLERANCE)
    return per_unit * max(least, largest_logit)


def tolerances(dtype: str) -> dict[str, float]:
    """The rules above, as a run records them; residuals and raw logits are only checked in float32."""
    per_unit, least = _LOGIT_TOLERANCES.get(dtype, _HALF_TOLERANCE)
    rules = {"norm_logits_per_unit": per_unit, "norm_logits_least_unit": least}
    if dtype == "float32":
        rules |= {"residual": RESIDUAL_TOLERANCE, "raw_logits": RESIDUAL_TOLERANCE}
    return rules


def deviation(ours: PassResult, reference: PassResult, readout: Readout) -> Deviation:
    """Compare two captures of the same prompts, where both are finite (states that overflow cannot be compared)."""
    finite = np.isfinite(ours.residual).all((1, 2)) & np.isfinite(reference.residual).all((1, 2))
    if not finite.any():
        return Deviation(0.0, 0.0, 0.0, 0.0)
    ours, reference = (PassResult(r.residual[finite], r.token_logits, r.scale_mass) for r in (ours, reference))
    difference = np.linalg.norm(ours.residual.astype(np.float64) - reference.residual, axis=-1)
    size = np.linalg.norm(reference.residual.astype(np.float64), axis=-1)
    norm = [readout.token_logits(result.residual, "norm") for result in (ours, reference)]
    raw = [readout.token_logits(result.residual, "raw") for result in (ours, reference)]
    return Deviation(
        residual=float(np.max(difference / np.maximum(size, np.finfo(np.float64).tiny))),
        norm_logits=float(np.max(np.abs(norm[0] - norm[1]))),
        raw_logits=float(np.max(np.abs(raw[0] - raw[1])) / max(float(np.max(np.abs(raw[1]))), 1e-30)),
        largest_logit=float(np.max(np.abs(norm[1]))),
    )
