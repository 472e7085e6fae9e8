"""Settings that every test shares: offline, seeded models, shapes and types checked as the code runs."""

from __future__ import annotations

import logging
import os
import signal

# A shell that starts the suite in the background has it ignore Ctrl-C, which some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

import jaxtyping
import pytest

import tests.typecheck  # noqa: F401 - the hook below looks it up by name

# Modules that compute with arrays have every shape and type checked on every call. Those that read what users
# write are left out: their own messages are what the tests are about.
_CHECKED = (
    "aggregate",
    "align",
    "calibration",
    "comparing",
    "comparison",
    "duplicates",
    "evidence",
    "fitted",
    "intervals",
    "lens",
    "levels",
    "locate",
    "permutation",
    "protocol",
    "raters",
    "resampling",
    "ridge_recipes",
    "score_tokens",
    "study",
    "token_table",
    "tuned",
)
_PACKAGES = ("capturing", "choices", "fitting", "store")
jaxtyping.install_import_hook([f"probes.{name}" for name in (*_CHECKED, *_PACKAGES)], "tests.typecheck.checker")

from probes.models import load_model
from tests import tiny


@pytest.fixture(autouse=True)
def _log_of_the_library():
    """Messages go where a library's go, whatever command has run in this process before."""
    logger = logging.getLogger("probes")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


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
