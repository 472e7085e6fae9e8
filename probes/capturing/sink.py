"""Where the numbers of a capture go: into a run file, or into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from jaxtyping import Int

    from probes.store.shard_writer import ShardData


class Shard(Protocol):
    """Takes the numbers of whole passes."""

    def add(self, data: ShardData) -> None:
        """Keep the numbers of a pass."""


class Sink(Protocol):
    """Keeps what the passes of a capture give, shard by shard."""

    @property
    def finished(self) -> Mapping[int, Mapping[str, Any]]:
        """Shards that need not run, with the number of their ``rows``."""

    @property
    def kept(self) -> str:
        """What is left if the capture stops now, for messages."""

    @property
    def notes(self) -> dict[str, Any]:
        """What was decided on the first pass; empty before that."""

    def write_notes(self, notes: dict[str, Any]) -> None:
        """Keep what was decided on the first pass."""

    def open_shard(self, number: int, rows: Int[np.ndarray, " row"]) -> Shard:
        """Start a shard of these readings."""

    def close_shard(self, number: int, shard: Any) -> None:
        """Finish a shard that ``open_shard`` gave."""
