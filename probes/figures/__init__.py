"""Figures: one function each, a tidy table in, a matplotlib figure out.

The tables come from a comparison (``probes.compare``), from ``probes.learning_curve`` and ``probes.transfer``, and
from a run by ``probes.figures.tables``.
"""

from probes.figures import tables
from probes.figures.curves import alignment
from probes.figures.distributions import distributions, mass, reliability
from probes.figures.forest import forest
from probes.figures.labels import learning_curve
from probes.figures.maps import score_map, similarity, transfer
from probes.figures.output import save
from probes.figures.panels import weights
from probes.figures.single import item

__all__ = [
    "alignment",
    "distributions",
    "forest",
    "item",
    "learning_curve",
    "mass",
    "reliability",
    "save",
    "score_map",
    "similarity",
    "tables",
    "transfer",
    "weights",
]
