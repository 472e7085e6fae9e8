"""Reading a run: items, layers, score logits and residuals, without the model."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.errors import RunFileError
from probes.lens import LENSES
from probes.store.description import Description
from probes.store.format import EXTRAS
from probes.store.generated import answer_texts, cut_off
from probes.store.header import Header, read_header
from probes.store.selecting import (
    Choice,
    Some,
    chosen_items,
    chosen_layers,
    chosen_numbers,
    item_numbers,
    one_layer,
    rows_of,
)
from probes.store.values import Selection, Values, damage_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import xarray as xr

    from probes.artefact import FittedJudge
    from probes.choices.fitted import ChoiceScores
    from probes.fitted import Scores


class Run(Description):
    """One capture, read lazily from its file. Use ``open_run``.

    Axes: ``item``, ``reading`` (one an item in the direct condition, one a sample where answers are sampled, two a
    sample for pairs), ``layer`` (``embed, 1 .. L``), ``label``, ``d_model``, ``rater``.
    """

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._selection is None:  # a selection shares the file of its run, which stays open
            self.close()

    @cached_property
    def final_mass(self) -> Float[np.ndarray, " reading"]:
        """Share of the full vocabulary's probability on the scale at the last layer."""
        return self._values.numbers("final_mass")

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the optional readings that ``extra`` gives."""
        return tuple(self.attr("extras"))

    def score_logits(
        self, lens: str = "norm", readings: Some | None = None, items: Some | None = None
    ) -> Float[np.ndarray, "reading layer label"]:
        """Score logits under a lens, NaN in rows without numbers.

        A lens that was not stored is computed from the residuals.

        As everywhere in a run, rows come in the order asked for and as often as asked for, numbers below 0 count from
        the end, and those of a mask or slice ascend.

        Args:
            lens: ``raw`` or ``norm``.
            readings: Reading numbers, a boolean mask or a slice; all unless given.
            items: Instead, the items whose readings are wanted, item by item: numbers, ids, a boolean mask or a slice.

        Raises:
            RunFileError: The lens is unknown, or it was not stored and neither were residuals.
        """
        if lens not in LENSES:
            raise RunFileError(f"{self.path}: unknown lens {lens!r}; it has {', '.join(self.lenses)}")
        if self.has_choices:
            raise RunFileError(
                f"{self.path} has choices of its items and no labels; read their log-likelihoods with choice_logprob"
            )
        if lens in self.attr("lenses"):
            return self._values.numbers(f"score_logits/{lens}", self._rows(readings, items))
        return self.readout.score_logits(self.residual(readings=readings, items=items), lens)

    def choice_logprob(self, lens: str = "norm", items: Some | None = None) -> Float[np.ndarray, "choice layer"]:
        """Log-likelihood of every choice at every layer: the sum over its tokens, in nats.

        NaN where ``item_status`` is not ``OK``. Which rows belong to which item is in ``choices.offsets``.

        Args:
            lens: One of ``lenses``.
            items: Items whose choices are wanted, as in ``score_logits``; all unless given.

        Raises:
            RunFileError: The run has no choices, the lens was not captured, or there is no such item.
        """
        if not self.has_choices:
            raise RunFileError(f"{self.path} has labels and no choices; read their score logits with score_logits")
        if lens not in self.lenses:
            raise RunFileError(
                f"{self.path}: choices were not scored under the lens {lens!r}, and cannot be without the model; it "
                f"has {', '.join(self.lenses)}"
            )
        chosen = None if items is None else item_numbers(self, items)
        return self._values.choices(f"choice_logprob/{lens}", len(self.attr("layers")), chosen)

    def item_logits(self, lens: str = "norm") -> Float[np.ndarray, "item layer label"]:
        """Score logits of every item under a lens; NaN rows where ``item_status`` is not ``OK``.

        In the direct condition those of its one reading; of sampled answers the mean over the samples that were
        read; of a pair the mean over both orders, with the labels of the swapped one reversed, so that the log-odds
        of the two responses are the mean of the log-odds of the two orders.

        Raises:
            RunFileError: As ``score_logits``.
        """
        return self.readings.item_logits(self.score_logits(lens))

    def position_bias(self, lens: str = "norm") -> pd.DataFrame:
        """How much a pairwise judge leans to the response that it is shown first, per layer.

        Returns:
            One row a layer: ``layer, n, bias, sd, flipped``. ``bias`` is in log-odds and positive where the judge
            prefers the response shown first; ``flipped`` is the share of items whose preferred response changes
            with the order. See ``Readings.position_bias``.

        Raises:
            RunFileError: The run is not pairwise, or as ``score_logits``.
        """
        if not self.pairwise:
            raise RunFileError(f"{self.path} judges single responses; only a pairwise run has a position bias")
        logits = self.score_logits(lens).astype(np.float64)
        first = self.scale.labels.index(self.attr("first_label"))
        return self.readings.position_bias(logits[..., first] - logits[..., -1 - first], self.layers)

    def residual(
        self, layer: str | int | None = None, readings: Some | None = None, items: Some | None = None
    ) -> Float[np.ndarray, "reading *layer d_model"]:
        """Residual states before the final norm, float32, NaN in rows without numbers.

        Args:
            layer: Name on the layer axis (``"embed"``, ``"12"`` or 12); all layers unless given.
            readings: As in ``score_logits``; all unless given.
            items: Instead, the items whose readings are wanted, as in ``score_logits``.

        Raises:
            RunFileError: Residuals were not stored, or there is no such layer or item.
        """
        if self.attr("residual_dtype") == "none":
            raise RunFileError(f"{self.path} holds no residuals; capture again with residuals=True")
        return self._decoded("residual", self._rows(readings, items), layer)

    @property
    def has_item_residuals(self) -> bool:
        """Whether residuals were stored, and an item has one of them: a pair has one an order, which are no mean."""
        return bool(self.attr("residual_dtype") != "none" and not self.pairwise)

    def item_residual(self, layer: str | int) -> Float[np.ndarray, "item d_model"]:
        """Residual states of every item at one layer, float32; NaN rows where ``item_status`` is not ``OK``.

        In the direct condition those of its one reading; of sampled answers the mean over the samples that were read.

        Raises:
            RunFileError: Residuals were not stored, the run is pairwise, or there is no such layer.
        """
        if self.pairwise:
            raise RunFileError(f"{self.path} is pairwise: an item has a state in each order, and no mean of them")
        return self.readings.item_mean(self.residual(layer))

    def extra(
        self,
        name: str,
        readings: Some | None = None,
        layer: str | int | None = None,
        items: Some | None = None,
    ) -> Float[np.ndarray, "reading ..."]:
        """An optional reading, float32, NaN in rows without numbers.

        Args:
            name: ``scale_mass``, the share of the full vocabulary's probability on the scale ``[reading, layer]``;
                ``entropy``, of the full vocabulary, in nats ``[reading, layer]``; ``last_positions``, residuals of
                the last positions up to the one read, earliest first ``[reading, back, layer, d_model]``;
                ``response_mean``, mean residual over the tokens of the response ``[reading, layer, d_model]``.
            readings: As in ``score_logits``; all unless given.
            layer: Name on the layer axis, which then drops out; all layers unless given.
            items: Instead of readings, the items whose readings are wanted, as in ``score_logits``.

        Raises:
            RunFileError: It was not captured, or there is no such reading, layer or item.
        """
        if name not in EXTRAS:
            raise RunFileError(f"{self.path}: unknown extra reading {name!r}; there are {', '.join(EXTRAS)}")
        if name not in self.extras:
            raise RunFileError(f"{self.path} holds no {name}; capture again with {EXTRAS[name].option}")
        return self._decoded(name, self._rows(readings, items), layer)

    def scores(self, judge: str | FittedJudge = "final") -> Scores | ChoiceScores:
        """Scores of every item by a judge: ``value [item]``, on the scale of the label values, and ``probs``.

        Args:
            judge: One that needs no labels (``final``, ``layer:12``, ``lager``, each with ``@raw`` or ``@norm``), or
                one that was fitted.

        Raises:
            FitError: The judge is unknown, needs labels, or does not go with this run.
        """
        from probes.comparing import score

        return score(self, judge)

    def select(
        self,
        *,
        items: Some | None = None,
        split: Choice | None = None,
        group: Choice | None = None,
        criterion: Choice | None = None,
        system: Choice | None = None,
        layers: Sequence[str | int] | str | int | None = None,
    ) -> Run:
        """Items that satisfy all conditions, and layers, as a run; no numbers are read before they are asked for.

        Items and layers come in the order asked for and as often as asked for; where no items are named, in the order
        of this run. Whatever takes items or layers of a run keeps to this. An item that is there twice has its id
        twice, which no file may (``merge``), and judges and figures put layers into the order of the model.

        Args:
            items: Numbers, ids, a boolean mask or a slice.
            split: Value of the split, or several.
            group: Value of the group, or several.
            criterion: Value of the criterion, or several.
            system: Value of the system, or several.
            layers: Names on the layer axis. Without the last layer there is no ``final`` judge.

        Returns:
            A run that shares this one's file.

        Raises:
            RunFileError: There is no such item, value or layer, or nothing is left.
        """
        wanted = {"split": split, "group": group, "criterion": criterion, "system": system}
        layer_numbers = None if layers is None else chosen_layers(self, layers)
        of = self.readings.item if self._selection is None else self._selection.item
        if items is None and all(value is None for value in wanted.values()):
            chosen, rows, item = np.arange(self.n_items), np.arange(len(of)), of
        else:
            chosen = chosen_items(self, items, wanted)
            rows, item = rows_of(of, chosen)
        if (before := self._selection) is not None:
            chosen, rows = before.items[chosen], before.readings[rows]
            if before.layers is not None:
                layer_numbers = before.layers if layer_numbers is None else before.layers[layer_numbers]
        return Run(self.path, self._file, self._shards, Selection(chosen, rows, item, layer_numbers))

    @property
    def generated_ids(self) -> list[Int[np.ndarray, " token"]]:
        """Generated token ids of every reading, empty where nothing was captured.

        Raises:
            RunFileError: Nothing was generated for this run.
        """
        return self.generated("generation/token_ids")

    @property
    def generated_text(self) -> list[str]:
        """Generated text of every reading, empty where nothing was captured; see ``answer_texts``.

        Raises:
            RunFileError: Nothing was generated for this run.
        """
        return self.answer_texts()

    def answer_texts(self, readings: Int[np.ndarray, " row"] | None = None) -> list[str]:
        """Generated text of some readings, up to the stop text that ended it.

        A stop text stays where the task of the item names it: its metrics are made for that.

        Raises:
            RunFileError: Nothing was generated for this run.
        """
        return answer_texts(self, readings)

    @cached_property
    @damage_named
    def cut_off(self) -> Bool[np.ndarray, " reading"]:
        """Whether an answer has all the tokens that it may have, and has not come to its end with them.

        Its numbers are kept, as far as it has any; False where nothing was generated.
        """
        return cut_off(self)

    @damage_named
    def header(self) -> Header:
        """Everything but the numbers, in one object."""
        header = read_header(self._file)
        if self._shards is not None:
            status, position = (Values(self._file, self._shards, None, "").readings(n) for n in ("status", "position"))
            header = replace(header, status=status, reading_position=position)
        return header if self._selection is None else header.select(self._selection)

    def to_pandas(self) -> pd.DataFrame:
        """One row a reading; see ``probes.store.export.to_pandas``."""
        from probes.store.export import to_pandas

        return to_pandas(self)

    def to_xarray(self) -> xr.Dataset:
        """Everything with named axes, large arrays read when asked for; see ``probes.store.export.to_xarray``."""
        from probes.store.export import to_xarray

        return to_xarray(self)

    def stored(self, name: str, readings: Some) -> np.ndarray:
        """Rows below ``/capture`` as they are stored, bfloat16 as bits; a lens that is not stored is computed."""
        lens = name.removeprefix("score_logits/")
        if lens != name and lens not in self.attr("lenses"):
            return self.score_logits(lens, readings)
        return self._values.numbers(name, self._rows(readings, None))

    def generated(self, name: str, readings: Some | None = None) -> list[np.ndarray]:
        """Rows of ``generation/token_ids`` or ``generation/text`` (UTF-8 bytes), one a reading.

        Raises:
            RunFileError: Nothing was generated for this run.
        """
        if name not in self._values:
            raise RunFileError(f"{self.path} holds nothing generated: its judge was read at the end of the prompt")
        return self._values.ragged(name, self._rows(readings, None))

    def generated_lengths(self, name: str) -> Int[np.ndarray, " reading"]:
        """Lengths of the rows of ``generated``; 0 where nothing was."""
        return self._values.lengths(name) if name in self._values else np.zeros(len(self.status), dtype=np.int64)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _rows(self, readings: Some | None, items: Some | None) -> Int[np.ndarray, " row"] | None:
        """Reading numbers of some readings, or of all readings of some items."""
        if items is not None:
            if readings is not None:
                raise RunFileError(f"{self.path}: choose readings or items, not both")
            return rows_of(self.readings.item, item_numbers(self, items))[0]
        if readings is None:
            return None
        return chosen_numbers(readings, len(self.status), "reading", self.path)

    def _decoded(self, name: str, rows: np.ndarray | None, layer: str | int | None) -> np.ndarray:
        number = None if layer is None else one_layer(self, layer)
        return self._values.numbers(name, rows, number, decode=True)
