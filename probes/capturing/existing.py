"""A run file that is there already: is it the one that was asked for, and what does it lack?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from probes.differences import differences
from probes.errors import RunFileError
from probes.same_model import named_like

if TYPE_CHECKING:
    from probes.items import Items
    from probes.store.header import Header
    from probes.store.run import Run


def missing_items(run: Run, asked: Header, *, extend: bool) -> Int[np.ndarray, " missing"]:
    """Positions of the items that were asked for and that a run does not hold.

    Args:
        run: The run that is there.
        asked: Header of the run that was asked for.
        extend: Whether items and lenses may be missing.

    Raises:
        RunFileError: The run differs in what cannot be added to it; every difference is named.
    """
    there = run.header()
    asked = replace(asked, attrs=named_like(asked.attrs, there.attrs))
    differ = differences(_settings(there, lenses=not extend), _settings(asked, lenses=not extend))
    place = {name: number for number, name in enumerate(run.ids)}
    known = [number for number, name in enumerate(asked.items.ids) if name in place]
    advice = "choose another path, or overwrite=True (--overwrite) to replace it"
    if extend:
        differ += _changed(run, asked, known, [place[asked.items[number].id] for number in known])
        lacking = [lens for lens in asked.lenses if lens not in run.lenses]
        if lacking and asked.choices is not None:
            differ.append(f"lenses (the likelihoods of choices under {lacking[0]} cannot be computed any more)")
        elif lacking:
            differ.append(f"lenses (without residuals {lacking[0]} cannot be computed)")
    elif not differ and run.ids != asked.items.ids:
        n_new = len(asked.items) - len(known)
        differ.append(f"items ({len(run.ids)} there, {len(asked.items)} asked for, {n_new} of them new)")
        if n_new:
            advice = f"extend=True (--extend) adds the new ones; or {advice}"
    else:
        differ += _changed(run, asked, known, [place[asked.items[number].id] for number in known])
    if differ:
        raise RunFileError(f"{run.path} exists and differs in {', '.join(differ)}; {advice}")
    return np.setdiff1d(np.arange(len(asked.items)), known)


def _settings(header: Header, *, lenses: bool) -> dict[str, Any]:
    config = header.attrs.get("config", {})
    settings: dict[str, Any] = {
        "judge": header.attrs.get("judge") or header.attrs["judge_hash"],
        "extra readings": list(header.extras),
        "type of the residuals": header.residual_dtype or "none",
        "layers": list(header.layers),
        "raters": header.items.raters,
        "last positions": config.get("extras", {}).get("last_positions", 0),
        "length limit": config.get("max_tokens"),
    }
    return settings | ({"lenses": sorted(header.lenses)} if lenses else {})


def _changed(run: Run, asked: Header, known: list[int], places: list[int]) -> list[str]:
    """How the items that both have differ."""
    there, hashes = run.items, run.item_hashes
    if not known:
        return []
    found = []
    prompts = [asked.items[k].id for k, p in zip(known, places, strict=True) if asked.item_hashes[k] != hashes[p]]
    if prompts:
        found.append(f"the prompts of {len(prompts)} items (first {prompts[0]!r})")
    width = max(there.n_raters, asked.items.n_raters)
    texts = [
        asked.items[k].id
        for k, p in zip(known, places, strict=True)
        if _record(there, p, width) != _record(asked.items, k, width)
    ]
    if texts:
        found.append(f"the human scores, texts or labels of {len(texts)} items (first {texts[0]!r})")
    return found


def _record(items: Items, number: int, width: int) -> tuple[Any, ...]:
    """An item as a run stores it."""
    item = items[number]
    scores = np.full(width, np.nan, dtype=np.float32)
    scores[: len(item.human)] = item.human
    choices = item.choices, np.array(item.choice_scores, dtype=np.float64).tobytes()
    return dict(item.fields), item.criterion, item.group, item.system, item.split, scores.tobytes(), choices
