"""Stopping a long capture without losing the pass that is running."""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)


class CtrlC:
    """Within this context the first Ctrl-C is only noted, and the second one interrupts as usual.

    Python hands signals to the main thread only, so elsewhere nothing changes.

    Attributes:
        pressed: Whether to stop as soon as the work in hand is done.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self._before)
        logger.warning("stopping after this pass; press Ctrl-C again to stop at once")
