"""How often intervals hold the truth: simulated studies with ties and groups, and known population coefficients.

A study draws groups of items. Human scores are whole labels, so most are tied. Two judges are compared as in
``probes.compare``: one that rounds a layer and needs no labels, and ``slope-ridge``, fitted in every fold. The truth is
what the intervals are about: the same judges, fold by fold as fitted, on the population instead of the sample.
``python -m benchmarks.coverage`` prints the table in docs/methods.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import multivariate_normal, norm

from probes.aggregate import get_aggregator
from probes.evidence import Evidence
from probes.fitted import LayerLogits
from probes.intervals import Interval, mean_over_folds, paired
from probes.protocol import make_folds, out_of_fold

VALUES = np.arange(1.0, 6.0)
TILT = (VALUES - VALUES.mean()) / ((VALUES - VALUES.mean()) @ (VALUES - VALUES.mean()))
CUTS = np.array([-1.5, -0.5, 0.5, 1.5])
TIED, FITTED = "rounded", "slope-ridge"


@dataclass(frozen=True)
class World:
    """Where studies are drawn from: every layer shows the quality of an item with an error of its own.

    Attributes:
        shows: How much of the quality each layer shows; the errors have variance one.
        noise: Standard deviation of the human scores about the quality.
        shared: Share of the variance of everything that the items of a group have in common.
    """

    shows: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    noise: float = 0.6
    shared: float = 0.3

    def draw(self, rng: np.random.Generator, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Layers and human scores of items."""
        parts = []
        for width in (1, len(self.shows), 1):
            own = rng.normal(size=(len(groups), width))
            common = rng.normal(size=(groups.max() + 1, width))[groups]
            parts.append(np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * own)
        quality, errors, human = parts
        score = (quality + self.noise * human)[:, 0]
        return quality * np.array(self.shows) + errors, VALUES[np.searchsorted(CUTS, score)]

    def human_shares(self) -> np.ndarray:
        """Probability of each label in the population."""
        return np.diff(norm.cdf([-np.inf, *CUTS, np.inf], scale=np.hypot(1, self.noise)))

    def linear(self, weights: np.ndarray) -> float:
        """Spearman, in the population, of a weighted sum of the layers.

        With ``J`` the sum and ``Y`` the human score before rounding, both standard normal with correlation r,
        ``E[Phi(J) | Y] = Phi(r Y / sqrt(2 - r^2))``, integrated over the labels.
        """
        shows = np.array(self.shows)
        r = weights @ shows / np.sqrt((weights @ shows) ** 2 + weights @ weights) / np.hypot(1, self.noise)
        at = np.linspace(-8, 8, 8001)
        shares = self.human_shares()
        middle = np.cumsum(shares) - shares / 2
        rank = middle[np.searchsorted(CUTS, at * np.hypot(1, self.noise))]
        joint = np.sum(norm.cdf(r * at / np.sqrt(2 - r**2)) * rank * norm.pdf(at)) * (at[1] - at[0])
        return float((joint - 0.25) / np.sqrt((1 - (shares**3).sum()) / 12 / 12))

    @cached_property
    def rounded(self) -> float:
        """Spearman, in the population, of the last layer rounded to whole numbers from -2 to 2."""
        show = self.shows[-1]
        spread = np.array([np.hypot(show, 1), np.hypot(1, self.noise)])
        r = show / spread.prod()
        edges = [np.array([-9, *(CUTS / one), 9]) for one in spread]
        below = np.array([[multivariate_normal.cdf([a, b], cov=[[1, r], [r, 1]]) for b in edges[1]] for a in edges[0]])
        cells = np.diff(np.diff(below, axis=0), axis=1)
        sides = cells.sum(axis=1), cells.sum(axis=0)
        ranks = [np.cumsum(side) - side / 2 - 0.5 for side in sides]
        spreads = [(side * rank**2).sum() for side, rank in zip(sides, ranks, strict=True)]
        return float(ranks[0] @ cells @ ranks[1] / np.sqrt(np.prod(spreads)))


def study(
    world: World,
    n_groups: int,
    sizes: tuple[int, int],
    repeats: int,
    resamples: int,
    seed: int,
    *,
    by_group: bool = True,
) -> list[tuple[str, float, Interval, Interval]]:
    """One study: what is estimated, the truth, its interval, and for comparison the percentile interval.

    Args:
        world: Where it is drawn from.
        n_groups: Number of groups.
        sizes: Smallest and largest number of items in a group.
        repeats: Repeats of five folds.
        resamples: Resamples.
        seed: Of everything.
        by_group: Resample groups; if not, items as if each were a group, which is wrong.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(sizes[0], sizes[1], n_groups, endpoint=True))
    layers, y = world.draw(rng, groups)
    names = tuple(map(str, range(len(world.shows))))
    logits = LayerLogits((layers[:, :, None] * TILT).astype(np.float32), names, VALUES, "norm")
    folds = make_folds(y, groups, 5, repeats, seed)
    fitted = out_of_fold(get_aggregator(FITTED), logits, y, groups, folds)
    scores = {
        TIED: np.broadcast_to(np.clip(np.round(layers[:, -1]), -2, 2), fitted.scores.shape),
        FITTED: fitted.scores,
    }
    resampled = groups if by_group else np.arange(len(y))
    evidence = Evidence.gather(scores, {}, y, resampled, folds, resamples, 0.95, seed)
    # A ridge is linear in the layers: what it gives for one of them alone is its weight.
    probe = np.concatenate((np.zeros((1, len(names))), np.eye(len(names))))[:, :, None] * TILT
    probe_logits = LayerLogits(probe.astype(np.float32), names, VALUES, "norm")
    given = [one.predict(probe_logits).value for one in fitted.fits]
    truth = {TIED: world.rounded, FITTED: float(np.mean([world.linear(one[1:] - one[0]) for one in given]))}
    found = [(judge, truth[judge], evidence.estimates[judge], _percentile(evidence, judge)) for judge in scores]
    found.append(
        (
            "difference",
            truth[FITTED] - truth[TIED],
            evidence.difference(FITTED, TIED),
            _percentile(evidence, FITTED, TIED),
        )
    )
    return found


def _percentile(evidence: Evidence, first: str, second: str | None = None) -> Interval:
    of = evidence.coefficients
    values = mean_over_folds(of[first]) if second is None else paired(of[first], of[second])
    return Interval(values[0], *np.nanquantile(values[1:], [0.025, 0.975]))


def simulate(
    n_groups: int,
    sizes: tuple[int, int],
    n_studies: int,
    *,
    world: World | None = None,
    repeats: int = 5,
    resamples: int = 1000,
    seed: int = 0,
    by_group: bool = True,
) -> pd.DataFrame:
    """Many studies of one kind: coverage, misses on either side, width, and the coverage of percentile intervals."""
    world, rows = world or World(), []
    for number in range(n_studies):
        drawn = study(world, n_groups, sizes, repeats, resamples, seed + number, by_group=by_group)
        for about, truth, found, percentile in drawn:
            rows.append(
                {
                    "about": about,
                    "truth": truth,
                    "value": found.value,
                    "covers": found.lo <= truth <= found.hi,
                    "too_high": truth < found.lo,
                    "too_low": truth > found.hi,
                    "width": found.hi - found.lo,
                    "percentile_covers": percentile.lo <= truth <= percentile.hi,
                }
            )
    return pd.DataFrame(rows).groupby("about", sort=False).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    columns = ("groups", "items in each", "interval of", "truth", "estimate", "covers", "too low, too high", "width")
    print(f"| {' | '.join(columns)} | percentiles cover |\n{'| --- ' * (len(columns) + 1)}|")
    for n_groups, sizes in ((20, (1, 1)), (20, (1, 5)), (50, (1, 5)), (200, (1, 5))):
        start = time.perf_counter()
        for about, row in simulate(n_groups, sizes, studies).iterrows():
            each = f"{sizes[0]}" if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
            print(
                f"| {n_groups} | {each} | {about} | {row['truth']:.3f} | {row['value']:.3f} | {row['covers']:.1%} "
                f"| {row['too_low']:.1%}, {row['too_high']:.1%} | {row['width']:.2f} "
                f"| {row['percentile_covers']:.1%} |",
                flush=True,
            )
        print(f"{time.perf_counter() - start:.0f} s for {studies} studies", flush=True)


if __name__ == "__main__":
    main()
