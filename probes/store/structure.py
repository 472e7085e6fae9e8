"""The structure of a run against the table in ``spec``: what there is, of which type and shape, in one reading."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from probes.errors import ScaleError
from probes.lens import LENSES
from probes.scale import Scale
from probes.store import spec
from probes.store.format import EXTRAS, FORMAT, FORMAT_VERSION, raw_bytes
from probes.store.safety import DAMAGE, one_line, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probes.store.faults import Faults

# Numbers are read in blocks of about so many bytes.
BLOCK_BYTES: Final = 32 << 20
_NUMBER_KINDS: Final[dict[str, Any]] = {"int": np.integer, "float": np.floating, "bool": np.bool_}


class Structure:
    """A run file whose attributes, types and shapes have been checked.

    Args:
        file: The file, already known to hold nothing unsafe.
        faults: Takes what is wrong.
        finished: Whether it is a whole run, or the header of one that is being written.

    Attributes:
        attrs: Root attributes that are what they should be; JSON is parsed.
        scale: The scale; None where it is none.
        captured: Whether it has ``/capture``.
        sizes: Length of every axis.
    """

    def __init__(self, file: h5py.File, faults: Faults, *, finished: bool) -> None:
        self.faults = faults
        self._file = file
        self._finished = finished
        self.captured = "capture" in file
        self.generated = "generation" in file
        self.has_choices = "choices" in file
        self.has_parts = "prompts/parts" in file
        self._objects: dict[str, h5py.Dataset | h5py.Group] = {"/": file}
        file.visititems(lambda name, node: self._objects.__setitem__(f"/{name}", node))
        self.attrs: dict[str, Any] = self._attributes("/", [a for a in spec.ATTRIBUTES if a.owner == "/"])
        self._check_attrs()
        self.scale = self._scale()
        self.sizes: dict[str, int] = {}
        if self.scale is not None:
            self.sizes["label"] = len(self.scale.labels)
        if "layers" in self.attrs:
            self.sizes["layer"] = len(self.attrs["layers"])
        self._datasets: dict[str, h5py.Dataset] = {}
        self._unread: dict[str, str] = {}
        self._check_objects()

    def has(self, *paths: str) -> bool:
        """Whether all these datasets are there, of the right type and shape."""
        return all(path in self._datasets for path in paths)

    def __contains__(self, name: str) -> bool:
        return f"/{name}" in self._objects

    def dataset(self, path: str) -> h5py.Dataset:
        """A dataset of the right type and shape."""
        return self._datasets[path]

    def owner_attrs(self, path: str) -> dict[str, Any]:
        """Attributes of a group or dataset that are what they should be."""
        return self._attributes(path, [a for a in spec.ATTRIBUTES if a.owner == path], quiet=True)

    def blocks(self, path: str) -> Iterator[tuple[int, np.ndarray]]:
        """Stretches of a dataset with the number of their first row; its checksums are checked on the way."""
        dataset, expected = self._datasets[path], self._unread.pop(path, "")
        sha, whole = hashlib.sha256(), True
        for start, stop in _stretches(dataset):
            try:
                block = dataset[start:stop]
            except (*DAMAGE, MemoryError) as error:
                self._unreadable(path, start, stop, one_line(error))
                whole = False
                continue
            sha.update(raw_bytes(block))
            yield start, block
        if whole and expected and sha.hexdigest() != expected:
            self.faults.add(path, f"its values have the SHA-256 {sha.hexdigest()[:12]}..., not {expected[:12]}...")

    def _unreadable(self, path: str, start: int, stop: int, why: str) -> None:
        named = f"rows {start} to {stop - 1}"
        self.faults.add_rows(
            path, np.array([start]), lambda _: f"cannot be read ({why})", lambda _: named, "unreadable"
        )

    def whole(self, path: str) -> np.ndarray | None:
        """A whole dataset, or None where a part of it cannot be read."""
        dataset = self._datasets[path]
        blocks = [block for _, block in self.blocks(path)]
        found = np.concatenate(blocks) if blocks else np.empty(dataset.shape, dataset.dtype)
        return found if len(found) == len(dataset) else None

    def rows(self, name: str, offsets: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Whole rows of a ragged dataset, some at a time.

        Args:
            name: Path of the group with its ``values`` and ``offsets``.
            offsets: The offsets, ascending from 0 to the number of values.

        Yields:
            Number of the first row, offsets from 0 on, and values.
        """
        rest, row = np.empty(0, self._datasets[f"{name}/values"].dtype), 0
        for start, block in self.blocks(f"{name}/values"):
            if start != offsets[row] + len(rest):
                return  # something before it could not be read
            rest = np.concatenate([rest, block]) if len(rest) else block
            stop = int(np.searchsorted(offsets, start + len(block), side="right")) - 1
            if stop > row:
                bounds = offsets[row : stop + 1] - offsets[row]
                yield row, bounds, rest[: bounds[-1]]
                rest, row = rest[bounds[-1] :], stop
        if row < len(offsets) - 1 and not len(rest):
            yield row, offsets[row:] - offsets[row], rest

    def read_rest(self) -> None:
        """Check the checksums of what nothing else has read."""
        for path in list(self._unread):
            for _ in self.blocks(path):
                pass

    def _attributes(self, path: str, known: list[spec.Attribute], *, quiet: bool = False) -> dict[str, Any]:
        """Values of the attributes of one object that are what they should be."""
        node, found = self._objects[path], {}
        names = list(node.attrs)
        for attribute in known:
            where = _attribute_path(path, attribute.name)
            if attribute.name not in names:
                if self._needed(attribute.needed) and not quiet:
                    self.faults.add(where, "is missing")
                continue
            try:
                value = _value(node.attrs[attribute.name], attribute.dtype)
            except (*DAMAGE, RecursionError) as error:
                if not quiet:
                    self.faults.add(where, one_line(error))
                continue
            found[attribute.name] = value
        if not quiet:
            for name in sorted(set(names) - {attribute.name for attribute in known}):
                where = _attribute_path(path, shown(name))
                self.faults.add(where, f"is no attribute of format version {FORMAT_VERSION}")
        return found

    def _needed(self, need: spec.Need) -> bool:
        """Whether an attribute must be there."""
        if need == "if pairwise":
            # Read from the file: it may not be among the checked attributes yet.
            return bool(self._file.attrs.get("pairwise", False))
        return need == "always" or (need == "if finished" and self._finished)

    def _check_attrs(self) -> None:
        attrs, faults = self.attrs, self.faults
        if attrs.get("format", FORMAT) != FORMAT:
            faults.add("/@format", f"is {shown(attrs['format'])!r}, not {FORMAT!r}")
        if (version := attrs.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
            faults.add("/@format_version", f"is {version}; this package checks version {FORMAT_VERSION}")
        for name, keys in spec.KEYS.items():
            for entry in attrs.get(name, []) if name == "parts" else [attrs[name]] if name in attrs else []:
                if not isinstance(entry, dict):
                    faults.add(f"/@{name}", "holds something that is no JSON object")
                elif missing := [key for key in keys if key not in entry]:
                    faults.add(f"/@{name}", f"does not say {', '.join(missing)}")
        n_layers = attrs.get("n_layers")
        if n_layers is not None and not 1 <= n_layers <= 100_000:
            faults.add("/@n_layers", f"is {n_layers}, which is no number of layers")
            n_layers = None
        if n_layers is not None and "layers" in attrs:
            every = ["embed", *map(str, range(1, n_layers + 1))]
            chosen = {layer for layer in attrs["layers"] if isinstance(layer, str)}
            if not attrs["layers"] or attrs["layers"] != [layer for layer in every if layer in chosen]:
                faults.add("/@layers", f"is not a part of embed, 1 .. {n_layers} in this order, each at most once")
        for name, known in (("lenses", LENSES), ("extras", tuple(EXTRAS))):
            given = attrs.get(name, [])
            wrong = [each for each in given if each not in known]
            if wrong or len(set(map(str, given))) < len(given):
                faults.add(f"/@{name}", f"must name each of {', '.join(known)} at most once, and nothing else")
                attrs[name] = [each for each in known if each in given]
        for where, value, allowed in (
            ("/@residual_dtype", attrs.get("residual_dtype"), ("float32", "bfloat16", "none")),
            ("/@dtype", attrs.get("dtype"), ("float32", "bfloat16", "float16")),
        ):
            if value is not None and value not in allowed:
                faults.add(where, f"is {shown(value)!r}; it must be one of {', '.join(allowed)}")

    def _scale(self) -> Scale | None:
        if "scale" not in self.attrs:
            return None
        try:
            return Scale.from_dict(self.attrs["scale"])
        except (ScaleError, *DAMAGE) as error:
            self.faults.add("/@scale", f"is no scale ({one_line(error)})")
            return None

    def _expected(self) -> Iterator[tuple[str, spec.Dataset, bool]]:
        """Every dataset that may be there: its path, what it must be like, and whether it must be there."""
        attrs = self.attrs
        for entry in spec.DATASETS:
            if entry.path.endswith("<lens>"):
                of_choices = entry.needed == "if captured with choices, for each of `lenses`"
                for lens in attrs.get("lenses", []) if of_choices == self.has_choices else []:
                    yield entry.path.replace("<lens>", lens), entry, self.captured
                continue
            name = entry.path.rpartition("/")[2]
            wanted = {
                "always": True,
                "if captured": self.captured,
                "if captured with residuals": self.captured and attrs.get("residual_dtype", "none") != "none",
                "if captured, for each of `extras`": self.captured and name in attrs.get("extras", []),
                "if generated": self.generated,
                "with choices": self.has_choices,
                "with parts": self.has_parts,
            }[entry.needed]
            if wanted or entry.path in self._objects:
                yield entry.path, entry, wanted

    def _check_objects(self) -> None:
        known = {"/"}
        for path, entry, needed in self._expected():
            parts = path.split("/")
            known |= {"/".join(parts[:n]) for n in range(2, len(parts) + 1)}
            node = self._objects.get(path)
            if node is None:
                if needed:
                    self.faults.add(path, "is missing")
            elif not isinstance(node, h5py.Dataset):
                self.faults.add(path, "is a group; it must be a dataset")
            elif not needed:
                self.faults.add(path, "is there, but the run says that it has none")
            else:
                self._check_dataset(path, entry, node)
        for path in self._objects:
            if path not in known:
                self.faults.add(shown(path), f"is not in format version {FORMAT_VERSION}")
        for path in {attribute.owner for attribute in spec.ATTRIBUTES} - {"/", "every dataset"}:
            if isinstance(self._objects.get(path), h5py.Group):
                self._attributes(path, [a for a in spec.ATTRIBUTES if a.owner == path])
        for path in sorted(known & set(self._objects)):
            if isinstance(self._objects[path], h5py.Group) and path not in ("/", "/readout", "/prompts/parts"):
                self._attributes(path, [])

    def _check_dataset(self, path: str, entry: spec.Dataset, node: h5py.Dataset) -> None:
        own = [a for a in spec.ATTRIBUTES if a.owner in (entry.path, "every dataset")]
        attrs = self._attributes(path, own)
        faults, right = self.faults, True
        stored = self._stored(entry)
        if stored is None:
            cset = node.id.get_type().get_cset() if node.dtype.kind == "S" else None
            # ASCII is UTF-8 as well.
            right = cset is not None and (entry.dtype == "UTF-8" or cset == h5py.h5t.CSET_ASCII)
        else:
            right = node.dtype == np.dtype(stored)
        if not right:
            faults.add(path, f"has the type {node.dtype}, not {entry.dtype}" + (f" ({stored})" if stored else ""))
        if "dtype" in attrs and attrs["dtype"] != ("bfloat16" if node.dtype == np.uint16 else "float32"):
            faults.add(_attribute_path(path, "dtype"), f"is {shown(attrs['dtype'])!r}, but {node.dtype} is stored")
            right = False
        if not self._shape_fits(entry, node):
            right = False
            sizes = [self._size(axis) for axis in entry.shape]
            faults.add(path, f"has the shape {list(node.shape)}, not [{', '.join(entry.shape)}] = {_sizes(sizes)}")
        if node.size and not node.fletcher32:
            faults.add(path, "has no fletcher32 filter")
        if right:
            self._datasets[path] = node
            self._unread[path] = attrs.get("sha256", "")

    def _stored(self, entry: spec.Dataset) -> str | None:
        """Type of the elements in the file; None for text."""
        if entry.dtype == "state":
            bits = self.attrs.get("residual_dtype")
            if bits in (None, "none"):
                bits = self.attrs.get("dtype")
            return spec.BFLOAT16_BITS if bits == "bfloat16" else spec.STORED["float32"]
        return spec.STORED.get(entry.dtype)

    def _size(self, axis: str) -> int | None:
        name, _, more = axis.partition(" + ")
        return self.sizes[name] + int(more or 0) if name in self.sizes else None

    def _shape_fits(self, entry: spec.Dataset, node: h5py.Dataset) -> bool:
        if len(node.shape) != len(entry.shape):
            return False
        found: dict[str, int] = {}
        for axis, length in zip(entry.shape, node.shape, strict=True):
            name, _, more = axis.partition(" + ")
            if axis != "*":
                found[name] = length - int(more or 0)
        # The first dataset along an axis says how long it is.
        return all(size >= 0 and self.sizes.setdefault(name, size) == size for name, size in found.items())


def attributes_digest(file: h5py.File) -> str:
    """SHA-256 over every attribute of a file but this one: over all of it, as datasets have theirs of their values."""
    nodes: dict[str, Any] = {"/": file}
    file.visititems(lambda name, node: nodes.__setitem__(f"/{name}", node))
    sha = hashlib.sha256()
    for path in sorted(nodes):
        for name in sorted(nodes[path].attrs):
            if (path, name) == ("/", "sha256"):
                continue
            value = nodes[path].attrs[name]
            sha.update(f"{path}\0{name}\0".encode())
            sha.update(
                value.encode("utf-8", "surrogateescape") if isinstance(value, str) else np.asarray(value).tobytes()
            )
            sha.update(b"\0")
    return sha.hexdigest()


def _value(value: Any, dtype: spec.AttributeType) -> Any:
    """The value of an attribute, JSON parsed.

    Raises:
        ValueError: It is of another type.
    """
    if dtype in _NUMBER_KINDS:
        if not isinstance(value, _NUMBER_KINDS[dtype]):
            raise ValueError(f"is of type {type(value).__name__}, not {dtype}")
        return value.item()
    if not isinstance(value, str):
        raise ValueError(f"is of type {type(value).__name__}, not text of variable length")
    if len(value) > spec.MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"is a text of {len(value):,} characters, longer than any in a run")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if dtype == "SHA-256" and not is_sha256(value):
        raise ValueError("is no SHA-256: 64 digits of 0-9, a-f")
    if not dtype.startswith("JSON"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({one_line(error)})") from None
    if not isinstance(parsed, dict if dtype == "JSON object" else list):
        raise ValueError(f"is no {dtype}")
    return parsed


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 as it is written here."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _attribute_path(path: str, name: str) -> str:
    return f"{path}@{name}"


def _sizes(sizes: list[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def _stretches(dataset: h5py.Dataset) -> Iterator[tuple[int, int]]:
    """Stretches of rows to read at once: whole chunks, where these are not too many."""
    n_rows = len(dataset)
    row = max(1, int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize)
    size = max(1, BLOCK_BYTES // row)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    if size > chunk:
        size -= size % chunk
    return ((start, min(start + size, n_rows)) for start in range(0, n_rows, size))
