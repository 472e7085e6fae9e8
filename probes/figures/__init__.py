"""Figures: one function each, a tidy table in, a matplotlib figure out."""

from probes.figures.curves import alignment
from probes.figures.output import save
from probes.figures.panels import weights

__all__ = ["alignment", "save", "weights"]
