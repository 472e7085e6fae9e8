"""Capture: feed items to a judge and write one run file."""

from probes.capturing.pipeline import Preview, capture, preview

__all__ = ["Preview", "capture", "preview"]
