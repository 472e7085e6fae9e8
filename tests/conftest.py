"""Settings that every test shares: offline, seeded, one thread pool, no cache outside the test folder."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

import pytest

from probes.models import load_model
from tests import tiny


@pytest.fixture(scope="session")
def booted():
    """Booted tiny models by architecture, one boot each."""
    made: dict = {}

    def boot(architecture: str = "llama"):
        if architecture not in made:
            made[architecture] = load_model(tiny.hf_model(architecture), tokenizer=tiny.tokenizer())
        return made[architecture]

    return boot


@pytest.fixture(scope="session")
def smollm2():
    """The embedded judge's model, real weights; it is fetched and converted once into the cache."""
    return load_model("smollm2-135m")
