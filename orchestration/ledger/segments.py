"""What counts of a journal on disk: whole frames, of those parts of its segments that were not overtaken.

    ledger/000001.log    one segment for each process that drove the run: its epoch
    ledger/000002.log    a header frame first, then records, in the order in which they were appended

A frame is `<u32 length><u32 crc32 of the payload>` and the payload, little-endian. The header says how many bytes
of every earlier segment count: those that its epoch found there when it began. That seals them: a driver that was
taken for dead and lives on may write to its own segment, and nobody reads it.

The newest segment with a whole header is the one that is believed. Of itself counts what stands before the first
frame that is cut short or does not match its checksum; of a segment whose header is not whole, nothing.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack  # type: ignore[import-untyped]

from core.errors import UserError

FORMAT_VERSION = 1
"""Of the segments. Raised when an older Leash could not read them."""

FRAME_HEAD = struct.Struct("<II")
"""Length in bytes and crc32 of the payload that follows."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a record stands: in which epoch's segment, and at which byte its frame begins."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One file, and how much of it counts."""

    path: Path
    epoch: int
    num_bytes: int
    """That count, from the start of the file; 0 if its header never did."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a segment holds behind the bytes that count."""

    num_frames: int
    """Whole frames: written by a driver after another had taken over."""
    num_bytes: int
    """Behind those: a frame that a crash cut short."""


def segment_path(folder: Path, epoch: int) -> Path:
    return folder / f"{epoch:06d}.log"


def epochs_in(folder: Path) -> list[int]:
    """The epochs that claimed a segment, oldest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name.removesuffix(".log")) for name in names if re.fullmatch(r"\d{6,}\.log", name))


def frame(payload: bytes) -> bytes:
    """The payload as it is written. It is not empty: a hole full of zeros must not read as a frame."""
    assert 0 < len(payload) < 2**32, f"a frame of {len(payload)} bytes"
    return FRAME_HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def header_payload(epoch: int, sealed_bytes: Mapping[int, int]) -> bytes:
    """The first payload of a segment. `sealed_bytes`: by epoch, how much of each earlier segment counts."""
    header = {"format": FORMAT_VERSION, "epoch": epoch, "sealed_bytes": dict(sealed_bytes)}
    return bytes(msgpack.packb(header))


def survey(folder: Path, *, before: int | None = None) -> list[Segment]:
    """Every segment (of an epoch `before` this one) with what counts of it, oldest first.

    Raises `UserError` if one that counts is not there, or if a newer Leash wrote them.
    """
    epochs = [epoch for epoch in epochs_in(folder) if before is None or epoch < before]
    sealed_bytes: dict[int, int] = {}
    for epoch in reversed(epochs):
        path = segment_path(folder, epoch)
        header = next(_whole_frames(path), None)
        if header is not None:
            sealed_bytes = _sealed_bytes(path, header[1]) | {epoch: _prefix_bytes(path)}
            break
    for epoch, num_bytes in sealed_bytes.items():
        if num_bytes and epoch not in epochs:
            raise UserError(
                f"{segment_path(folder, epoch)}: a part of the ledger is gone; bring the file back"
            )
    return [Segment(segment_path(folder, epoch), epoch, sealed_bytes.get(epoch, 0)) for epoch in epochs]


def records_of(segment: Segment) -> Iterator[tuple[Position, bytes]]:
    """Position and payload of every record that counts. Raises `UserError`, with file and byte, for one that
    is damaged."""
    stop = 0
    if segment.num_bytes:
        for offset, payload in _whole_frames(segment.path):
            stop = offset + FRAME_HEAD.size + len(payload)
            if stop > segment.num_bytes:
                raise _damaged(segment.path, offset)
            if offset > 0:  # not the header
                yield Position(segment.epoch, offset), payload
            if stop == segment.num_bytes:
                return
        raise _damaged(segment.path, stop)


def read_record(folder: Path, position: Position) -> bytes:
    """The payload at this position. Raises `UserError`, with file and byte, if it is damaged."""
    path = segment_path(folder, position.epoch)
    found = next(_whole_frames(path, position.offset), None)
    if found is None:
        raise _damaged(path, position.offset)
    return found[1]


def leftovers_of(segment: Segment) -> Leftovers:
    """What is ignored of a segment."""
    num_frames, stop = 0, segment.num_bytes
    for offset, payload in _whole_frames(segment.path, segment.num_bytes):
        num_frames, stop = num_frames + 1, offset + FRAME_HEAD.size + len(payload)
    return Leftovers(num_frames, segment.path.stat().st_size - stop)


def _whole_frames(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of the frames from `start` to the first that is not whole."""
    with path.open("rb") as file:
        file.seek(start)
        while len(head := file.read(FRAME_HEAD.size)) == FRAME_HEAD.size:
            length, checksum = FRAME_HEAD.unpack(head)
            payload = file.read(length)
            if not payload or len(payload) < length or zlib.crc32(payload) != checksum:
                return
            yield start, payload
            start += len(head) + length


def _prefix_bytes(path: Path) -> int:
    stop = 0
    for offset, payload in _whole_frames(path):
        stop = offset + FRAME_HEAD.size + len(payload)
    return stop


def _sealed_bytes(path: Path, payload: bytes) -> dict[int, int]:
    header = msgpack.unpackb(payload, strict_map_key=False)
    if header["format"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: has format {header['format']}, and this Leash reads {FORMAT_VERSION}; update it"
        )
    return dict(header["sealed_bytes"])


def _damaged(path: Path, offset: int) -> UserError:
    return UserError(
        f"{path}: damaged at byte {offset}, in a part that was whole before. Bring the file back from a copy, "
        "or start a new run."
    )
