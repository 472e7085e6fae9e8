"""Whether layers choose by the length of the choices: they do where a log-likelihood is a sum over tokens like any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from probes.choices.data import PER_WORDS, PERS
from probes.choices.ragged import first_largest, largest, spread, sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.choices.data import Per
    from probes.choices.judges import ChoiceJudge
    from probes.choices.parts import ChoicePart

# A layer goes by the length if it chooses a shortest, or a longest, choice in this share of the items ...
_SHARE: Final = 0.9
# ... of so many at least whose choices differ in length, unless there is hardly another to choose.
_ITEMS: Final = 10
_AT_RANDOM: Final = 0.75


def layers_per(judges: Sequence[ChoiceJudge], per: Per | None) -> tuple[Per, list[str]]:
    """What the log-likelihoods of layers are divided by, and what is to be said about it.

    Args:
        judges: Judges that were asked for.
        per: What was asked for; what all judges that read layers divide by, where they agree, unless given.
    """
    if per is not None:
        return per, []
    found = {judge.per for judge in judges if judge.options}  # one that reads no layers has no settings
    if len(found) < 2:
        return next(iter(found), ""), []
    note = (
        "the judges divide log-likelihoods differently: tables and figures of layers are about whole log-likelihoods; "
        f"choose one with per={_listed()}"
    )
    return "", [note]


def per_note(per: Per) -> str:
    """What stands under tables of layers whose log-likelihoods are divided; nothing where they are not."""
    return f" Log-likelihoods of layers are divided by the {PER_WORDS[per]}s of each choice." if per else ""


def length_notes(part: ChoicePart, per: Per) -> list[str]:
    """Say where layers in the first half choose one of the shortest choices in nearly all items, or of the longest.

    Length is counted in scored tokens, whatever log-likelihoods are divided by.
    """
    tokens, offsets = part.first.n_tokens.astype(np.float64), part.first.offsets
    notes = []
    for word, size in (("shortest", -tokens), ("longest", tokens)):
        extreme = size == spread(largest(size, offsets), offsets)
        at_random = sums(extreme.astype(np.float64), offsets) / np.diff(offsets)
        varied = at_random < 1
        n_varied = int(varied.sum())
        if n_varied < _ITEMS or (chance := float(at_random[varied].mean())) > _AT_RANDOM:
            continue
        for lens, data in part.data.items():
            rows = offsets[:-1, None] + first_largest(data.divided(per), offsets)
            share = extreme[rows][varied].mean(axis=0)
            early = len(data.layers) // 2
            found = share[:early][share[:early] >= _SHARE]
            if not len(found):
                continue
            low, high = f"{found.min():.0%}", f"{found.max():.0%}"
            of = f" under the lens {lens}" if len(part.data) > 1 else ""
            what = f"; divide by it with per={_listed()}"
            if per:
                what = f", although log-likelihoods are divided by {PER_WORDS[per]}s"
            notes.append(
                f"of the first {early} layers ({data.layers[0]} to {data.layers[early - 1]}){of}, {len(found)} choose "
                f"one of the {word} choices in {low if low == high else f'{low} to {high}'} of {n_varied} items whose "
                f"choices differ in length (at random {chance:.0%}): their accuracy is about length{what}"
            )
    return notes


def _listed() -> str:
    names = [f"'{per}'" for per in PERS if per]
    return f"{', '.join(names[:-1])} or {names[-1]} (--per {PERS[-1]})"
