"""What is wrong with a run: one line a fault, and not a thousand lines where a thousand rows share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:
    from collections.abc import Callable

# Faults of one kind that are named; of the others the number is given.
_NAMED: Final = 3


@dataclass(frozen=True)
class Fault:
    """Something that a run must not have.

    Attributes:
        where: Attribute, dataset or row, as a path in the file.
        what: What is wrong with it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Faults:
    """Faults as they are found."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], list[Fault]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, where: str, what: str) -> None:
        """Note a fault of a whole attribute or dataset."""
        self._kinds.setdefault((where, what), [Fault(where, what)])

    def add_rows(
        self,
        where: str,
        rows: Shaped[np.ndarray, " row"],
        what: Callable[[int], str],
        name: Callable[[int], str] = lambda row: f"row {row}",
        kind: str = "",
    ) -> None:
        """Note the same fault of some rows of a dataset.

        Args:
            where: Path of the dataset.
            rows: Row numbers.
            what: What is wrong with a row, given its number.
            name: What a row is called.
            kind: Tells faults of one dataset apart.
        """
        key = (where, f"rows {kind}")
        named = self._kinds.setdefault(key, []) if len(rows) else []
        for row in rows[: max(0, _NAMED - len(named))].tolist():
            named.append(Fault(f"{where} {name(row)}", what(row)))
        if len(rows):
            self._counts[key] = self._counts.get(key, 0) + len(rows)

    def found(self) -> list[Fault]:
        """All faults, in the order in which they were found."""
        faults = []
        for key, named in self._kinds.items():
            faults += named
            if (more := self._counts.get(key, 0) - len(named)) > 0 and key in self._counts:
                faults.append(Fault(key[0], f"and {more:,} more"))
        return faults
