"""The run file: written as closed shards, consolidated into one HDF5 file, read lazily."""

from probes.store.format import FORMAT_VERSION, Status
from probes.store.opening import open_run
from probes.store.run import Run

__all__ = ["FORMAT_VERSION", "Run", "Status", "open_run"]
