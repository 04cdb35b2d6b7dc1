"""What a weight push consists of, as both of its ends see it: a manifest, and how a tensor is digested."""

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from blake3 import blake3

from core.errors import WorkerError
from core.messages import Float32s, Int32s

SHARED_MEMORY = Path("/dev/shm")
ALIGNMENT_BYTES = 64
"""Tensors start at cache lines."""
BUFFER_PREFIX = "leash-weights-"
"""Of a buffer's name. Then comes the owner's process id: buffers of processes that were killed are removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of the shared buffer."""

    name: str
    """Hugging Face parameter name; of an adapter, the one that PEFT's checkpoints use."""
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    digest: str
    """BLAKE3 of the tensor's bytes, computed by the learner from what it wrote."""

    @property
    def num_bytes(self) -> int:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.Size(self.shape).numel() * dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterScale:
    """What pushed adapters A and B add to a weight of the engine's own: alpha / rank * B A."""

    rank: int
    alpha: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """One policy version, lying in shared memory, and how to tell that it arrived."""

    policy_version: int
    node: str
    """Ray's id of the node whose shared memory it is."""
    path: str
    """The buffer, a file in shared memory."""
    num_bytes: int
    tensors: tuple[TensorEntry, ...]
    adapters: AdapterScale | None
    """The tensors are adapters; None: they are the whole model."""
    probe_token_ids_T: Int32s
    """[T] int32: a sequence that the engine must score like the learner before it serves again."""
    probe_logprobs_T: Float32s
    """[T] float32, nats: the learner's log-probs of the probe; 0 for the first token."""
    max_probe_gap: float
    """Largest allowed mean difference on the probe, in nats."""


def digest(tensor: torch.Tensor) -> str:
    """BLAKE3 of a contiguous CPU tensor's bytes, without a copy."""
    data = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return blake3(data, max_threads=blake3.AUTO).hexdigest()


def new_buffer_path() -> Path:
    """Where this process may put a buffer. What others have left behind is removed."""
    for buffer in SHARED_MEMORY.glob(f"{BUFFER_PREFIX}*"):
        owner = int(buffer.name.removeprefix(BUFFER_PREFIX).split("-")[0])
        if not psutil.pid_exists(owner):
            buffer.unlink(missing_ok=True)
    return SHARED_MEMORY / f"{BUFFER_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"


def map_buffer(path: str, num_bytes: int) -> torch.Tensor:
    """The shared buffer as bytes. The file is created, or grown to size, if need be."""
    return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


def laid_out(tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]]) -> tuple[TensorEntry, ...]:
    """Where tensors of these names and shapes go in a buffer, one after the other; their digests are empty yet."""
    entries, offset = [], 0
    for name, shape, dtype in tensors:
        entry = TensorEntry(
            name=name,
            dtype=str(dtype).removeprefix("torch."),
            shape=shape,
            offset_bytes=offset,
            digest="",
        )
        entries.append(entry)
        offset += -(-entry.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(entries)


def view_tensors(
    buffer: torch.Tensor, entries: tuple[TensorEntry, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs that look into the buffer."""
    for entry in entries:
        dtype: torch.dtype = getattr(torch, entry.dtype)
        flat = buffer[entry.offset_bytes : entry.offset_bytes + entry.num_bytes].view(dtype)
        yield entry.name, flat.view(entry.shape)


def verified_tensors(
    path: str, num_bytes: int, entries: tuple[TensorEntry, ...]
) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs that look into a buffer. Raises `WorkerError` naming the first one that differs, or the
    buffer if it is not there."""
    _require_buffer(path, num_bytes)
    tensors = list(view_tensors(map_buffer(path, num_bytes), entries))
    for entry, (name, tensor) in zip(entries, tensors, strict=True):
        if digest(tensor) != entry.digest:
            raise WorkerError(f"weight push: tensor {name} arrived with other bytes than the learner wrote")
    return tensors


def _require_buffer(path: str, num_bytes: int) -> None:
    """Mapping a buffer that has gone with its learner would make another one, full of zeros."""
    try:
        found = Path(path).stat().st_size
    except OSError as error:
        raise WorkerError(f"weight push: the buffer {path} cannot be read ({error.strerror})") from None
    if found < num_bytes:
        raise WorkerError(f"weight push: the buffer {path} holds {found} of {num_bytes} bytes")
