"""Weights for rollout workers on other nodes than the learner's, whose shared memory they cannot see.

    learner's shared memory --read there, once a version--> Ray's object store --> a worker's own shared memory

Ray carries a version once to every node that asks for it. The digests are checked at the end, as everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import WorkerError
from core.weights import WeightManifest, new_buffer_path, write_buffer


class WeightRelay:
    """The newest version that somebody elsewhere has asked for.

    Ask while nobody may write the buffer: it is read in the learner's place.
    """

    def __init__(self) -> None:
        self._manifest: WeightManifest | None = None
        self._bytes: Any = None
        self._node = ""
        self._reader: Any = None

    def fetch(self, manifest: WeightManifest) -> Any:
        """A reference to all bytes of the buffer, which Ray hands to a worker as `weights`."""
        if self._manifest is not manifest:
            if self._node != manifest.node:
                self._reader, self._node = _reader_on(manifest.node), manifest.node
            self._bytes = self._reader.read.remote(manifest.path, manifest.num_bytes)
            self._manifest = manifest
        return self._bytes


class _Reader:
    """A process on the learner's node that reads for it. A task of its own for every version would be a process
    to start for most: Ray ends those that are idle."""

    def read(self, path: str, num_bytes: int) -> Any:
        return _read(path, num_bytes)


def _reader_on(node: str) -> Any:
    """Should it die, Ray starts it again."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Reader)
    return remote.options(scheduling_strategy=place).remote()


@contextmanager
def brought_here(manifest: WeightManifest, weights: Any) -> Iterator[WeightManifest]:
    """The same version as a buffer in this node's shared memory, for as long as it takes to load it.

    Raises `WorkerError` if it has no room."""
    path = new_buffer_path()
    try:
        write_buffer(path, weights)
        yield replace(manifest, path=str(path))
    finally:
        path.unlink(missing_ok=True)


def _read(path: str, num_bytes: int) -> Any:
    """Raises `WorkerError` if the buffer has gone with its learner: who asked catches up with the next version."""
    try:
        weights = np.fromfile(path, dtype=np.uint8, count=num_bytes)
    except OSError as error:
        raise WorkerError(f"weight push: the buffer {path} cannot be read ({error.strerror})") from None
    if len(weights) != num_bytes:
        raise WorkerError(f"weight push: the buffer {path} holds {len(weights)} of {num_bytes} bytes")
    return weights
