"""Saying in which settings two runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Longer values are named, not shown.
_SHOWN = 40


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, each as ``name`` or ``name (before, now after)``, in the order of their names.

    Args:
        there: What was found; nested mappings are compared name by name.
        wanted: What was asked for.
        prefix: Put before every name.
    """
    found: list[str] = []
    for name in sorted(there.keys() | wanted.keys()):
        before, after = there.get(name), wanted.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
            continue
        shown = [json.dumps(value, ensure_ascii=False, sort_keys=True) for value in (before, after)]
        if shown[0] != shown[1]:
            values = f" ({shown[0]}, now {shown[1]})" if max(map(len, shown)) <= _SHOWN else ""
            found.append(f"{prefix}{name}{values}")
    return found
