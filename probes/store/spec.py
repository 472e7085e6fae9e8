"""What a run file of format version 1 holds: every dataset and every attribute, as one table.

``docs/file-format.md`` prints this table, ``probes.verify`` checks files against it, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DataType = Literal["UTF-8", "ASCII", "float32", "float64", "int32", "int64", "uint8", "state"]
AttributeType = Literal["text", "int", "float", "bool", "SHA-256", "JSON object", "JSON list"]
Need = Literal[
    "always",
    "if finished",
    "if pairwise",
    "if captured",
    "if captured with residuals",
    "if captured, for each of `lenses`",
    "if captured with choices, for each of `lenses`",
    "with choices",
    "if captured, for each of `extras`",
    "if generated",
    "with parts",
    "optional",
]

# How numbers lie in the file; texts have any fixed length, and a state is float32 or the bits of a bfloat16.
STORED: Final = {"float32": "<f4", "float64": "<f8", "int32": "<i4", "int64": "<i8", "uint8": "|u1"}
BFLOAT16_BITS: Final = "<u2"


@dataclass(frozen=True)
class Dataset:
    """A dataset of a run.

    Attributes:
        path: Where it is; ``<lens>`` stands for the name of a lens.
        dtype: Type of its elements.
        shape: Names of its axes. ``item + 1`` is one more than there are items, and ``*`` any length.
        needed: When a run must have it. Where this does not hold it must not be there, unless it is optional.
    """

    path: str
    dtype: DataType
    shape: tuple[str, ...]
    needed: Need = "always"


@dataclass(frozen=True)
class Attribute:
    """An attribute of a group or dataset.

    Attributes:
        owner: Path of the group or dataset, or ``every dataset``.
        name: Its name.
        dtype: Type of its value.
        needed: When its owner must have it.
    """

    owner: str
    name: str
    dtype: AttributeType
    needed: Need = "always"


DATASETS: Final = (
    Dataset("/items/id", "UTF-8", ("item",)),
    Dataset("/items/criterion", "UTF-8", ("item",)),
    Dataset("/items/group", "UTF-8", ("item",)),
    Dataset("/items/system", "UTF-8", ("item",)),
    Dataset("/items/split", "UTF-8", ("item",)),
    Dataset("/items/human", "float32", ("item", "rater")),
    Dataset("/items/human_value", "float64", ("item",)),
    Dataset("/items/items_hash", "ASCII", ("item",)),
    Dataset("/items/fields/values", "uint8", ("*",)),
    Dataset("/items/fields/offsets", "int64", ("item + 1",)),
    Dataset("/prompts/token_ids/offsets", "int64", ("prompt + 1",)),
    Dataset("/prompts/token_ids/values", "int32", ("*",)),
    Dataset("/prompts/parts/offsets", "int64", ("prompt + 1",), "with parts"),
    Dataset("/prompts/parts/part", "int32", ("span",), "with parts"),
    Dataset("/prompts/parts/start", "int32", ("span",), "with parts"),
    Dataset("/prompts/parts/stop", "int32", ("span",), "with parts"),
    Dataset("/readings/item", "int32", ("reading",)),
    Dataset("/readings/sample", "int32", ("reading",)),
    Dataset("/readings/prompt", "int32", ("reading",)),
    Dataset("/readings/swapped", "uint8", ("reading",)),
    Dataset("/readings/position", "int32", ("reading",)),
    Dataset("/readings/status", "uint8", ("reading",)),
    Dataset("/readout/token_ids", "int64", ("token",)),
    Dataset("/readout/label_index", "int64", ("token",)),
    Dataset("/readout/norm_weight", "float32", ("d_model",)),
    Dataset("/readout/norm_bias", "float32", ("d_model",)),
    Dataset("/readout/unembed_rows", "float32", ("token", "d_model")),
    Dataset("/readout/unembed_bias", "float32", ("token",)),
    Dataset("/choices/offsets", "int64", ("item + 1",), "with choices"),
    Dataset("/choices/item", "int32", ("choice",), "with choices"),
    Dataset("/choices/score", "float64", ("choice",), "with choices"),
    Dataset("/choices/n_tokens", "int32", ("choice",), "with choices"),
    Dataset("/choices/label/values", "uint8", ("*",), "with choices"),
    Dataset("/choices/label/offsets", "int64", ("choice + 1",), "with choices"),
    Dataset("/choices/token_ids/values", "int32", ("*",), "with choices"),
    Dataset("/choices/token_ids/offsets", "int64", ("choice + 1",), "with choices"),
    Dataset("/capture/residual", "state", ("reading", "layer", "d_model"), "if captured with residuals"),
    Dataset(
        "/capture/score_logits/<lens>", "float32", ("reading", "layer", "label"), "if captured, for each of `lenses`"
    ),
    Dataset(
        "/capture/choice_logprob/<lens>",
        "float32",
        ("choice", "layer"),
        "if captured with choices, for each of `lenses`",
    ),
    Dataset("/capture/final_mass", "float32", ("reading",), "if captured"),
    Dataset("/capture/scale_mass", "float32", ("reading", "layer"), "if captured, for each of `extras`"),
    Dataset("/capture/entropy", "float32", ("reading", "layer"), "if captured, for each of `extras`"),
    Dataset(
        "/capture/last_positions",
        "state",
        ("reading", "back", "layer", "d_model"),
        "if captured, for each of `extras`",
    ),
    Dataset("/capture/response_mean", "float32", ("reading", "layer", "d_model"), "if captured, for each of `extras`"),
    Dataset("/generation/token_ids/values", "int32", ("*",), "if generated"),
    Dataset("/generation/token_ids/offsets", "int64", ("reading + 1",), "if generated"),
    Dataset("/generation/text/values", "uint8", ("*",), "if generated"),
    Dataset("/generation/text/offsets", "int64", ("reading + 1",), "if generated"),
)

ATTRIBUTES: Final = (
    Attribute("/", "format", "text"),
    Attribute("/", "format_version", "int"),
    Attribute("/", "created", "text"),
    Attribute("/", "config", "JSON object"),
    Attribute("/", "judge", "JSON object"),
    Attribute("/", "judge_hash", "SHA-256"),
    Attribute("/", "model_hash", "SHA-256"),
    Attribute("/", "model_hash_v1", "SHA-256", "optional"),
    Attribute("/", "readout_hash", "SHA-256"),
    Attribute("/", "scale", "JSON object"),
    Attribute("/", "n_layers", "int"),
    Attribute("/", "layers", "JSON list"),
    Attribute("/", "lenses", "JSON list"),
    Attribute("/", "extras", "JSON list"),
    Attribute("/", "pairwise", "bool"),
    Attribute("/", "first_label", "text", "if pairwise"),
    Attribute("/", "dtype", "text"),
    Attribute("/", "residual_dtype", "text"),
    Attribute("/", "tolerances", "JSON object"),
    Attribute("/", "deviations", "JSON object", "if finished"),
    Attribute("/", "versions", "JSON object"),
    Attribute("/", "parts", "JSON list", "optional"),
    Attribute("/", "sha256", "SHA-256", "if finished"),
    Attribute("/items/human", "raters", "text"),
    Attribute("/prompts/parts", "names", "JSON list"),
    Attribute("/readout", "norm_type", "text"),
    Attribute("/readout", "eps", "float"),
    Attribute("/readout", "logit_scale", "float"),
    Attribute("/readout", "softcap", "float"),
    Attribute("/readout", "order", "text"),
    Attribute("/capture/residual", "dtype", "text"),
    Attribute("/capture/last_positions", "dtype", "text"),
    Attribute("every dataset", "sha256", "SHA-256"),
)

# What a JSON attribute must name, where something is read from it.
KEYS: Final = {
    "config": ("model",),
    "judge": ("weights", "tokenizer", "chat_template", "template", "scale", "score_tokens", "condition", "dtype"),
    "scale": ("labels", "values", "human_range", "case", "bare"),
    "parts": ("created", "config", "versions", "deviations", "n_items"),
}

# Whatever else a run holds may be of any size; these bounds tell a run from an attack on its reader.
MAX_LINKS: Final = 64
MAX_ATTRIBUTES: Final = 64
MAX_ATTRIBUTE_BYTES: Final = 4 << 20
MAX_CHUNK_BYTES: Final = 64 << 20
# Deflate makes 1032 bytes of one at most; a run made of nothing but missing rows comes close to that.
MAX_INFLATION: Final = 1040
