"""What a weight push consists of, as both of its ends see it: a manifest, and how a tensor is digested."""

import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from blake3 import blake3

from core.errors import UserError, WorkerError
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
    """Where this process may put a buffer. What dead ones have left behind is removed, if it is this user's."""
    for buffer in SHARED_MEMORY.glob(f"{BUFFER_PREFIX}*"):
        owner = buffer.name.removeprefix(BUFFER_PREFIX).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            with suppress(OSError):  # everybody may put files here, and nobody remove another's
                buffer.unlink(missing_ok=True)
    return SHARED_MEMORY / f"{BUFFER_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"


def make_buffer(path: Path, num_bytes: int) -> torch.Tensor:
    """A new buffer as bytes, for this user's eyes alone, with all of its memory taken at once.

    Raises `UserError` if there is not so much: noticed while it is written, that would kill the process (SIGBUS).
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        path.unlink()
        raise UserError(_no_room(path, num_bytes, error)) from error
    finally:
        os.close(descriptor)
    return map_buffer(str(path), num_bytes)


def write_buffer(path: Path, weights: Any) -> None:
    """A new buffer with these bytes, for this user's eyes alone. Raises `WorkerError` if there is no room."""
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as buffer:
            buffer.write(weights)
    except OSError as error:
        raise WorkerError(_no_room(path, memoryview(weights).nbytes, error)) from error


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


def _no_room(path: Path, num_bytes: int, error: OSError) -> str:
    return (
        f"weight push: {path.parent} on {socket.gethostname()} does not take {num_bytes / 2**30:.2f} GiB "
        f"({error.strerror}); enlarge it (docker run --shm-size, mount -o remount,size=, a pod's shared_memory_gib)"
    )


def _require_buffer(path: str, num_bytes: int) -> None:
    """Mapping a buffer that has gone with its learner would make another one, full of zeros."""
    try:
        found = Path(path).stat().st_size
    except OSError as error:
        raise WorkerError(f"weight push: the buffer {path} cannot be read ({error.strerror})") from None
    if found < num_bytes:
        raise WorkerError(f"weight push: the buffer {path} holds {found} of {num_bytes} bytes")
