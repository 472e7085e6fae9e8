"""A fitted judge as a file: JSON, readable by people, exact to the last bit, and safe to open."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from probes.choices.fitted import FORMS, ChoiceScores, FittedChoices
from probes.differences import differences
from probes.errors import FitError
from probes.fitted import LINEAR, NUMBERS, FittedAggregator, Form, Scores
from probes.fitting.text import n_columns_of
from probes.layer_order import in_model_order
from probes.origin import changed_settings, judge_arguments, origin_of
from probes.runlike import Part, RunLike, ScaleLike, check_lens, has_choices, layer_logits, where
from probes.same_model import identity_of, named_like

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probes.choices.parts import ChoicePart
    from probes.judge import Judge

FORMAT: Final = "probes-judge"
FORMAT_VERSION: Final = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FittedJudge:
    """A fitted aggregator with everything that says where it may be used.

    Attributes:
        aggregator: What turns layers into a score, or into an answer among the choices of an item.
        scale: Description of the scale, as ``Scale.to_dict`` gives it.
        criterion: Criterion of the items that it was fitted on; ``all`` when they were pooled.
        judge_hash: Model, prompt, scale and condition of the run that it was fitted on.
        model_hash: Its model.
        readout_hash: Its readout.
        fit_hash: SHA-256 over the ids and human scores of the fit items.
        n_fit: Labelled items in the fit; 0 where no labels go in.
        metrics: How well it did, by name; None where undefined.
        version: Version of this package that fitted it.
        origin: What loads the judge of that run again, as ``origin_of`` gives it; empty where unknown.
        model_hash_v1: Hash that versions up to 0.1 gave the model; empty where it is not known.
    """

    aggregator: FittedAggregator | FittedChoices
    scale: Mapping[str, Any]
    criterion: str
    judge_hash: str
    model_hash: str
    readout_hash: str
    fit_hash: str
    n_fit: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    version: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    model_hash_v1: str = ""

    def __repr__(self) -> str:
        from probes.reprs import fitted_line

        return fitted_line(self)

    def _repr_html_(self) -> str:
        from probes.reprs import of_fitted

        return of_fitted(self)

    def check(self, run: RunLike, what: str = "") -> None:
        """Refuse a run that this judge cannot score, before any number of it is read.

        A run of the same model with another prompt or setting passes, with a warning in the log.

        Args:
            run: The run.
            what: What to call it in messages; its path unless given.

        Raises:
            FitError: The run is of another model, scale, readout or set of layers, or lacks the lens.
        """
        run = in_model_order(run)
        name, what, aggregator = self.aggregator.name, what or where(run), self.aggregator
        if isinstance(aggregator, FittedChoices) != has_choices(run):
            kinds = ("choices of items", "the labels of a scale")
            fitted_on, found = kinds if isinstance(aggregator, FittedChoices) else kinds[::-1]
            raise FitError(f"{name} was fitted on {fitted_on}, and {what} has {found}: fit a judge on such a run")
        named = named_like(identity_of(run), vars(self))
        self.check_judge(named["model_hash"], run.scale, what)
        lens = aggregator.reads
        check_lens(run, lens)
        if isinstance(aggregator, FittedChoices):
            aggregator.check(tuple(run.layers), lens)
        else:
            aggregator.check(tuple(run.layers), lens, np.asarray(run.scale.values, dtype=np.float64))
        if run.readout_hash != self.readout_hash:
            raise FitError(
                f"{what} reads its scores out otherwise than the run that {name} was fitted on "
                f"(score tokens, final norm or output matrix: readout_hash {run.readout_hash[:12]}, not "
                f"{self.readout_hash[:12]}): fit it on a run of this kind"
            )
        if named["judge_hash"] != self.judge_hash:
            changed = changed_settings(self.origin, named["judge"])
            _log.warning(
                "%s was fitted with another prompt or setting than %s%s: check its scores against human ones",
                name,
                what,
                f" ({', '.join(changed)})" if changed else "",
            )

    def check_judge(self, model_hash: str, scale: ScaleLike, what: str, model_hash_v1: str = "") -> None:
        """Refuse another model or scale; known as soon as a judge is loaded.

        Args:
            model_hash: Hash of the model.
            scale: The scale.
            what: Whose they are, for messages.
            model_hash_v1: Hash that versions up to 0.1 gave it, where it is known.

        Raises:
            FitError: It is another model or scale.
        """
        name = self.aggregator.name
        named = named_like({"model_hash": model_hash, "model_hash_v1": model_hash_v1}, vars(self))
        if named["model_hash"] != self.model_hash:
            origin = self.origin
            known = [origin.get("model"), origin.get("judge", {}).get("dtype"), origin.get("quantization")]
            that = ", ".join(str(part) for part in known if part) or "that model"
            raise FitError(
                f"{what} has another model than {name} was fitted on (model_hash {model_hash[:12]}, not "
                f"{self.model_hash[:12]}): use {that} (--model), or fit the judge on this one"
            )
        fitted, found = ({part: one[part] for part in ("labels", "values")} for one in (self.scale, scale.to_dict()))
        if differ := differences(fitted, found):
            raise FitError(
                f"{what} has another scale than {name} was fitted on ({', '.join(differ)}): fit it on this scale"
            )

    def score(self, run: RunLike) -> Scores | ChoiceScores:
        """Score every item of a run, or choose an answer; NaN where it has no reading. ``probes.score`` gives a table.

        Raises:
            FitError: As ``check``.
        """
        self.check(run)
        return self.predict(run)

    def predict(self, run: RunLike) -> Scores | ChoiceScores:
        """As ``score``, of a run that was checked."""
        run = in_model_order(run)
        if isinstance(self.aggregator, FittedChoices):
            from probes.choices.parts import choice_data

            return self.aggregator.predict(choice_data(run, self.aggregator.reads))
        return self.aggregator.predict(layer_logits(run, self.aggregator.reads))

    def load_judge(self, **changes: Any) -> Judge:
        """Load the judge of the run that this one was fitted on: its model, template, scale and condition.

        Args:
            changes: Arguments of ``Judge.load`` that differ, for example ``device`` or the place of the model.

        Raises:
            FitError: The file does not say what it was fitted with (an earlier version wrote it, or the run did not
                say), and ``changes`` do not give model and template.
            ModelError: The model cannot be loaded.
        """
        from probes.judge import Judge

        return Judge.load(**judge_arguments(self.origin, self.scale, changes))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``from_dict`` reads it back."""
        fitted = self.aggregator
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "aggregator": {
                "name": fitted.name,
                "lens": fitted.lens,
                "layers": list(fitted.layers),
                "values": list(fitted.values),
                "form": fitted.form,
                "params": dict(fitted.params),
                "notes": dict(fitted.notes),
            },
            "scale": dict(self.scale),
            "criterion": self.criterion,
            "judge_hash": self.judge_hash,
            "model_hash": self.model_hash,
            "model_hash_v1": self.model_hash_v1,
            "readout_hash": self.readout_hash,
            "fit_hash": self.fit_hash,
            "n_fit": self.n_fit,
            "metrics": dict(self.metrics),
            "version": self.version,
            "origin": dict(self.origin),
        }

    def save(self, path: str | Path) -> Path:
        """Write the judge to a file, whole or not at all; the same judge gives the same bytes."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes a private file; a saved judge is an ordinary one.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | Path) -> FittedJudge:
        """Read a judge that ``save`` wrote.

        Raises:
            FitError: The file is missing, not a fitted judge, of a later version, or damaged.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except FileNotFoundError:
            raise FitError(
                f"no such file: {path}; give a fitted judge, the .json file that `probes fit` wrote"
            ) from None
        except OSError as error:
            raise FitError(
                f"cannot read the judge {path}: {error.strerror or error}; give the .json file that `probes fit` wrote"
            ) from None
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise FitError(
                f"{path} is not a fitted judge: not valid JSON ({reason}); give the .json file that `probes fit` "
                "wrote, or fit it again"
            ) from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise FitError(f'{path} is not a fitted judge: "format" is not "{FORMAT}"; pass a file that fit wrote')
        if data.get("format_version") != FORMAT_VERSION:
            raise FitError(
                f"{path} has format version {data.get('format_version')!r}, but this version of probes reads "
                f"{FORMAT_VERSION}: update probes, or fit the judge again"
            )
        try:
            return cls._from_dict(data)
        except KeyError as error:
            raise FitError(f"{path} is damaged: {error.args[0]} is missing; fit the judge again") from None
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FitError(f"{path} is damaged: {error}; fit the judge again") from None

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> FittedJudge:
        inner = data["aggregator"]
        form = inner["form"]
        if form not in (*get_args(Form), *FORMS):
            raise ValueError(f"unknown form {form!r}")
        named_layers = str(inner["name"]), str(inner["lens"]), tuple(map(str, inner["layers"]))
        values = tuple(map(float, inner["values"]))
        found = form, dict(inner["params"]), dict(inner["notes"])
        fitted: FittedAggregator | FittedChoices
        if form in FORMS:
            fitted = FittedChoices(*named_layers, *found)
            fitted.check_params()
        else:
            fitted = FittedAggregator(*named_layers, values, *found)
            _check_params(fitted)
        if len(fitted.values) != len(values):
            raise ValueError("choices of items have no values")
        scale = dict(data["scale"])
        if len(scale["labels"]) != len(fitted.values):
            raise ValueError(f"{len(scale['labels'])} labels but {len(fitted.values)} values")
        if list(scale["values"]) != list(fitted.values):
            raise ValueError("the values of the scale are not those of the aggregator")
        texts = ("criterion", "judge_hash", "model_hash", "readout_hash", "fit_hash")
        named = {name: str(data[name]) for name in texts}
        return cls(
            fitted,
            scale,
            **named,
            n_fit=int(data["n_fit"]),
            metrics=dict(data["metrics"]),
            version=str(data["version"]),
            # Earlier versions did not write these.
            origin=_origin(data.get("origin", {})),
            model_hash_v1=str(data.get("model_hash_v1", "")),
        )


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _origin(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or not isinstance(data.get("judge", {}), dict):
        raise ValueError("origin is no description of a judge")
    return data


def _check_params(fitted: FittedAggregator) -> None:
    """Refuse parameters of the wrong shape or size, which would fail later, broadcast silently or score nonsense."""
    params, n_layers, n_labels = fitted.params, len(fitted.layers), len(fitted.values)
    shapes: dict[str, tuple[int, ...]]
    if fitted.form in LINEAR:
        columns = np.asarray(params["columns"])
        if columns.dtype.kind != "i" or columns.ndim != 2 or columns.shape[1] != 2:
            raise ValueError("columns are not pairs of layer and label")
        low, high = (0, -1), (n_layers - 1, n_labels - 1)
        if (columns < low).any() or (columns > high).any():
            raise ValueError("a column lies outside the layers or labels")
        if 0 < (columns[:, 1] < 0).sum() < len(columns):
            raise ValueError("columns mix slopes and labels")
        shapes = {**dict.fromkeys(("mean", "spread", "coef"), (len(columns),)), "layer_weights": (n_layers,)}
        shapes |= {"intercept": ()} if fitted.form == "ridge" else {"thresholds": (n_labels - 1,)}
    elif fitted.form in NUMBERS:
        n_columns = len(params["coef"])
        shapes = {**dict.fromkeys(("mean", "spread", "coef"), (n_columns,)), "intercept": ()}
        if (fitted.form == "state-ridge" and params["layer"] not in range(n_layers)) or params.get("layer") is True:
            raise ValueError("the layer is none of the layers")
        if fitted.form == "text-ridge" and n_columns_of(params["recipe"]) != n_columns:
            raise ValueError("the recipe makes another number of columns than there are weights")
    else:
        shapes = {"weights": (n_layers,)}
        if params.get("again", 0) not in (0, 1):
            raise ValueError("again is neither 0 nor 1")
    given = {name: params[name] for name in shapes}
    if "maps" in params:
        given |= {name: params["maps"][name] for name in ("matrix", "bias")}
        shapes |= {"matrix": (n_layers, n_labels, n_labels), "bias": (n_layers, n_labels)}
    for name, shape in shapes.items():
        array = np.asarray(given[name])
        if array.dtype.kind not in "fi" or array.shape != shape:
            raise ValueError(f"{name} has the wrong shape or type")
        # An exponent too large for a float is read as infinity.
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds a number that is not finite")
        if name == "spread" and (array <= 0).any():
            raise ValueError("a spread is not positive")
        if name == "thresholds" and (np.diff(array) <= 0).any():
            raise ValueError("thresholds do not ascend")
    if not np.isfinite(fitted.values).all() or (np.diff(fitted.values) <= 0).any():
        raise ValueError("values do not ascend")


def artefact(
    run: RunLike,
    part: Part | ChoicePart,
    fitted: FittedAggregator | FittedChoices,
    metrics: Mapping[str, float],
) -> FittedJudge:
    """A fitted aggregator with everything that ties it to its run."""
    labelled = fitted.notes["n_fit"] > 0
    every = list(run.ids) if labelled else []
    ids = [every[row] for row in part.rows] if labelled else []
    return FittedJudge(
        fitted,
        run.scale.to_dict(),
        part.criterion,
        run.judge_hash,
        run.model_hash,
        run.readout_hash,
        fit_set_hash(ids, part.labels if labelled else []),
        len(ids),
        {name: None if np.isnan(value) else float(value) for name, value in metrics.items()},
        package_version(),
        origin_of(run),
        identity_of(run)["model_hash_v1"] or "",
    )


def fit_set_hash(ids: Sequence[str], labels: Sequence[float] | Sequence[Sequence[float]]) -> str:
    """SHA-256 over ids and human scores, or scores of choices, in the order of the ids: what a fit has seen."""
    sha = hashlib.sha256()
    for name, score in sorted(zip(ids, labels, strict=True)):
        sha.update(json.dumps([name, score], ensure_ascii=False).encode())
    return sha.hexdigest()


def package_version() -> str:
    """Version of this package, or ``unknown`` where it runs without being installed."""
    try:
        return version("probes")
    except PackageNotFoundError:
        return "unknown"
