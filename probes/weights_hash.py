"""Hashes of a model: what it computes, from every weight and every setting that changes a number.

The first scheme hashed the whole config, and so moved with what changes no number: whether a cache is used, or a
setting that a later transformers knows and writes down. It lives on as a second name of a model, by which runs and
fitted judges of then are known (see ``same_model``).
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from probes.model_settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

# Set before what is hashed, so that no two schemes can ever give one hash to two models.
_SCHEME: Final = "probes-model-2;"


def hash_weights(hf_model: Any) -> str:
    """SHA-256 over the settings that change numbers, and every weight's name, shape, dtype and bytes.

    Buffers that are saved with a model count as weights: quantised models keep theirs there.
    """
    return _digests(hf_model, [_head(hf_model)])[0]


def hash_both(hf_model: Any) -> tuple[str, str]:
    """``hash_weights`` and the hash of the first scheme, from one pass over the weights."""
    now, before = _digests(hf_model, [_head(hf_model), _head_v1(hf_model)])
    return now, before


def _head(hf_model: Any) -> str:
    return _SCHEME + json.dumps(settings_of(hf_model), sort_keys=True, default=str)


def _head_v1(hf_model: Any) -> str:
    config = hf_model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "_attn_implementation", "architectures", "dtype"):
        config.pop(volatile, None)
    return "".join(f"{key}={config[key]!r};" for key in sorted(config))


def _digests(hf_model: Any, heads: Sequence[str]) -> list[str]:
    shas = [hashlib.sha256(head.encode()) for head in heads]
    # Hashing leaves Python to others, so that two hashes take little longer than one.
    with ThreadPoolExecutor(len(shas)) as pool:
        for part in _bytes(hf_model):
            list(pool.map(lambda sha, part=part: sha.update(part), shas))
    return [sha.hexdigest() for sha in shas]


def _bytes(hf_model: Any) -> Iterator[bytes | memoryview]:
    parameters = dict(hf_model.named_parameters())
    tied = {id(parameter) for parameter in hf_model.parameters()}
    # A tied weight appears once among the parameters and again in the state; buffers appear in the state only.
    buffers = {key: value for key, value in hf_model.state_dict(keep_vars=True).items() if id(value) not in tied}
    for name, tensor in sorted((parameters | buffers).items()):
        yield from _of_tensor(name.replace("._original_component", ""), tensor)


def _of_tensor(name: str, tensor: torch.Tensor) -> Iterator[bytes | memoryview]:
    import torch

    yield f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode()
    # A packed weight may be one tensor made of several, whose bytes only its parts can give.
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _of_tensor(part, getattr(tensor, part))
        return
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    yield memoryview(flat.view(torch.uint8).numpy())
