"""A report that a colleague can read: one HTML file with the answer, figures, tables and every item."""

from probes.reporting.build import report

__all__ = ["report"]
