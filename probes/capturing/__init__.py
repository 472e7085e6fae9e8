"""Capture: feed items to a judge and write one run file."""

from probes.capturing.pipeline import capture
from probes.capturing.preview import Preview, preview

__all__ = ["Preview", "capture", "preview"]
