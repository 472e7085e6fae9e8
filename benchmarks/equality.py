"""Deviations from plain transformers, architecture by architecture, in one by one and padded captures."""

from __future__ import annotations

import numpy as np

from probes.capturing.readout import extract_readout
from probes.models import load_model
from tests import tiny
from tests.test_equality import TOKENS, plain_transformers, relative, run


def main() -> None:
    prompts = tiny.prompts()
    print(f"{'architecture':12} {'layout':10} {'residual':>9} {'logits':>9} {'lens at L':>9} {'max logit':>9}")
    for architecture in tiny.ARCHITECTURES:
        loaded = load_model(tiny.hf_model(architecture), tokenizer=tiny.tokenizer())
        readout = extract_readout(loaded.bridge, TOKENS)
        residual, logits = plain_transformers(architecture, prompts)
        wanted = logits[:, TOKENS.token_ids]
        layouts = {"one by one": {"one_by_one": True}, "right pad": {}, "left pad": {"side": "left"}}
        for name, options in layouts.items():
            found = run(loaded, readout, prompts, **options)
            lens = readout.token_logits(found.residual[:, -1], "norm")
            print(
                f"{architecture:12} {name:10} {relative(found.residual, residual):9.1e} "
                f"{np.abs(found.token_logits - wanted).max():9.1e} {np.abs(lens - wanted).max():9.1e} "
                f"{np.abs(wanted).max():9.1f}"
            )


if __name__ == "__main__":
    main()
