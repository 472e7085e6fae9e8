"""One model under several hashes.

Versions up to 0.1 hashed the whole config of a model, with what changes no number. Runs and judges say beside today's
hash what that scheme gives (``model_hash_v1``), so that those of then are known for what they are. Whatever compares
models or judges asks here first.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from probes.errors import RunFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from probes.runlike import RunLike


def judge_digest(described: Mapping[str, Any]) -> str:
    """SHA-256 of a judge's description, as ``Judge.describe`` gives it."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def named_like(attrs: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says about its judge, under the model hash by which another one knows the same model.

    Args:
        attrs: ``model_hash``, and ``model_hash_v1``, ``judge`` and ``judge_hash`` where they are known.
        like: ``model_hash``, and ``model_hash_v1`` where it is known.

    Returns:
        ``attrs``, with the hashes of ``like`` if the model is the same.
    """
    name = like.get("model_hash")
    if attrs.get("model_hash") == name or not _hashes(attrs) & _hashes(like):
        return dict(attrs)
    named = dict(attrs) | {"model_hash": name}
    if judge := attrs.get("judge"):
        judge = {**judge, "weights": name}
        named |= {"judge": judge, "judge_hash": judge_digest(judge)}
    return named


def _hashes(attrs: Mapping[str, Any]) -> set[str]:
    return {attrs[name] for name in ("model_hash", "model_hash_v1") if attrs.get(name)}


def identity_of(run: RunLike) -> dict[str, Any]:
    """What a run says about its judge, for ``named_like``."""
    found: dict[str, Any] = {"model_hash": run.model_hash, "judge_hash": run.judge_hash}
    attr = getattr(run, "attr", None)
    for name in ("model_hash_v1", "judge"):
        try:
            found[name] = attr(name) if attr is not None else None
        except RunFileError:
            found[name] = None
    return found


def named_alike(runs: Iterable[RunLike]) -> list[dict[str, Any]]:
    """What runs say about their judges, with one hash for one model throughout."""
    found: list[dict[str, Any]] = []
    for run in runs:
        said = identity_of(run)
        for other in found:
            said = named_like(said, other)
        found.append(said)
    return found
