"""The digest of a tensor, and tensors that look into one buffer."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import WorkerError
from core.weights import TensorEntry, digest, laid_out, map_buffer, verified_tensors, view_tensors


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
