"""The digest of a tensor, and tensors that look into one buffer."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError, WorkerError
from core.weights import (
    BUFFER_PREFIX,
    SHARED_MEMORY,
    TensorEntry,
    digest,
    laid_out,
    make_buffer,
    map_buffer,
    new_buffer_path,
    verified_tensors,
    view_tensors,
    write_buffer,
)


def entry(name: str, tensor: torch.Tensor, offset_bytes: int) -> TensorEntry:
    return TensorEntry(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        offset_bytes=offset_bytes,
        digest=digest(tensor),
    )


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=64), st.data())
def test_any_changed_byte_changes_the_digest(content: bytes, data: st.DataObject) -> None:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    changed = tensor.clone()
    place = data.draw(st.integers(0, len(content) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    assert digest(changed) != digest(tensor)
    assert digest(tensor.clone()) == digest(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_sees_the_smallest_change_of_a_weight(dtype: torch.dtype) -> None:
    weights = torch.ones(3, 5, dtype=dtype)
    changed = weights.clone()
    changed[2, 4] += torch.finfo(dtype).eps
    assert digest(changed) != digest(weights)


def test_tensors_go_through_the_buffer_and_come_back_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embed.weight": torch.randn(7, 4, generator=generator),
        "norm.weight": torch.randn(4, generator=generator).bfloat16(),
        "scalar": torch.randn((), generator=generator),
    }
    entries, offset = [], 0
    for name, tensor in tensors.items():
        entries.append(entry(name, tensor, offset))
        offset += -(-tensor.nbytes // 16) * 16
    buffer = map_buffer(str(tmp_path / "buffer"), offset)
    for name, view in view_tensors(buffer, tuple(entries)):
        view.copy_(tensors[name])
    read_back = dict(view_tensors(map_buffer(str(tmp_path / "buffer"), offset), tuple(entries)))
    assert list(read_back) == list(tensors)
    for one in entries:
        tensor = read_back[one.name]
        assert tensor.dtype == tensors[one.name].dtype
        assert torch.equal(tensor, tensors[one.name])
        assert digest(tensor) == one.digest


def test_views_are_no_copies(tmp_path: Path) -> None:
    """What one process writes into the buffer, another one's tensors show."""
    path = str(tmp_path / "buffer")
    entries = (entry("w", torch.zeros(3, 2), 8),)
    ((_, written),) = view_tensors(map_buffer(path, 32), entries)
    ((_, seen),) = view_tensors(map_buffer(path, 32), entries)
    written[2, 1] = 42.0
    assert seen[2, 1] == 42.0
    buffer = map_buffer(path, 32)
    ((_, view),) = view_tensors(buffer, entries)
    assert view.data_ptr() == buffer.data_ptr() + 8


def test_a_byte_that_changed_in_the_buffer_names_its_tensor(tmp_path: Path) -> None:
    path, first, second = str(tmp_path / "buffer"), torch.arange(4.0), torch.arange(4.0, 8.0)
    entries = (entry("first", first, 0), entry("second", second, 16))
    buffer = map_buffer(path, 32)
    buffer.copy_(torch.cat([first, second]).view(torch.uint8))
    found = dict(verified_tensors(path, 32, entries))
    assert torch.equal(found["first"], first)
    assert torch.equal(found["second"], second)
    buffer[17] ^= 1
    with pytest.raises(WorkerError, match="tensor second arrived with other bytes"):
        verified_tensors(path, 32, entries)


def test_a_buffer_that_is_gone_is_named_and_none_is_made(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with pytest.raises(WorkerError, match=r"the buffer .*/buffer cannot be read \(No such file"):
        verified_tensors(str(path), 32, (entry("w", torch.zeros(3, 2), 8),))
    assert not path.exists()


def test_a_buffer_that_is_too_short_is_named_and_not_grown(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    path.write_bytes(bytes(20))
    with pytest.raises(WorkerError, match="the buffer .*/buffer holds 20 of 32 bytes"):
        verified_tensors(str(path), 32, (entry("w", torch.zeros(3, 2), 8),))
    assert path.stat().st_size == 20


def test_tensors_are_laid_out_one_after_the_other_from_cache_line_to_cache_line() -> None:
    first, second, third = laid_out(
        [("a", (3, 5), torch.float32), ("b", (32,), torch.bfloat16), ("c", (), torch.float32)]
    )
    assert [(e.offset_bytes, e.num_bytes) for e in (first, second, third)] == [(0, 60), (64, 64), (128, 4)]
    assert (first.name, first.dtype, first.shape) == ("a", "float32", (3, 5))


def is_private(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_buffer_is_its_users_and_takes_its_memory_at_once(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    before = os.umask(0o022)
    try:
        buffer = make_buffer(path, 2**20)
        write_buffer(tmp_path / "brought", buffer.numpy())
    finally:
        os.umask(before)
    assert len(buffer) == 2**20
    assert path.stat().st_blocks * 512 >= 2**20
    assert is_private(path)
    assert is_private(tmp_path / "brought")
    assert (tmp_path / "brought").read_bytes() == bytes(2**20)


def test_too_little_shared_memory_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match=r"does not take 3\.00 GiB \(No space left on device\); enlarge it"):
        make_buffer(tmp_path / "buffer", 3 * 2**30)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WorkerError, match=r"/dev on .* does not take 0\.00 GiB \(File exists\)"):
        write_buffer(Path("/dev/null"), b"weights")


def test_files_of_others_in_shared_memory_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uses the machine may put files there: with any name, and such that only they may remove."""
    strange = SHARED_MEMORY / f"{BUFFER_PREFIX}nobody"
    theirs = SHARED_MEMORY / f"{BUFFER_PREFIX}{2**22 + 1}-theirs"  # Linux counts processes to 2^22

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    try:
        strange.touch()
        theirs.touch()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refuse)
            assert not new_buffer_path().exists()
        assert strange.exists()
    finally:
        strange.unlink()
        theirs.unlink()
