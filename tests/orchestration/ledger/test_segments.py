"""What counts of a journal's files: literal bytes, torn ends, damage."""

from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from orchestration.ledger.journal import Journal
from orchestration.ledger.segments import Leftovers, frame, header_payload, survey
from tests.ledger_fakes import CrashingDisk, ignored, read, written


def test_a_frame_is_length_checksum_payload() -> None:
    assert frame(b"123456789") == bytes.fromhex("09000000 2639f4cb") + b"123456789"  # the CRC-32 check value


def test_a_segment_is_a_header_and_the_records(tmp_path: Path) -> None:
    written(tmp_path, b"a", b"bc").close()
    written(tmp_path).close()
    first = (tmp_path / "000001.log").read_bytes()
    head = frame(msgpack.packb({"format": 1, "epoch": 1, "sealed_bytes": {}}))
    assert first == head + frame(b"a") + frame(b"bc")
    head = frame(msgpack.packb({"format": 1, "epoch": 2, "sealed_bytes": {1: len(first)}}))
    assert (tmp_path / "000002.log").read_bytes() == head


@settings(deadline=None, max_examples=30)
@given(
    drivers=st.lists(st.lists(st.binary(min_size=1, max_size=20), max_size=4), min_size=1, max_size=3),
    cut=st.floats(0, 1),
    tail=st.sampled_from([b"", b"\0" * 30, b"\xff" * 9]),
)
def test_a_torn_tail_costs_what_it_tears_and_nothing_else(
    drivers: list[list[bytes]], cut: float, tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    for records in drivers:
        written(folder, *records, disk=CrashingDisk()).close()
    file = folder / f"{len(drivers):06d}.log"
    whole = file.read_bytes()
    kept = int(cut * len(whole))
    file.write_bytes(whole[:kept] + tail)
    stops = [len(frame(header_payload(len(drivers), survey_sizes(folder, len(drivers)))))]
    for record in drivers[-1]:
        stops.append(stops[-1] + 8 + len(record))
    num_left = max(sum(stop <= kept for stop in stops) - 1, 0)
    expected = [record for records in drivers[:-1] for record in records] + drivers[-1][:num_left]
    assert read(folder) == expected
    valid = max((stop for stop in stops if stop <= kept), default=0)
    assert ignored(folder)[-1] == Leftovers(0, kept + len(tail) - valid)
    after = written(folder, b"after", disk=CrashingDisk())
    assert [payload for _, payload in after.earlier()] == expected
    assert read(folder) == [*expected, b"after"]


def survey_sizes(folder: Path, epoch: int) -> dict[int, int]:
    return {earlier: (folder / f"{earlier:06d}.log").stat().st_size for earlier in range(1, epoch)}


def test_a_hole_of_zeros_is_not_a_row_of_empty_records(tmp_path: Path) -> None:
    written(tmp_path, b"a").close()
    with (tmp_path / "000001.log").open("ab") as file:
        file.write(bytes(64))
    assert read(tmp_path) == [b"a"]
    assert ignored(tmp_path) == [Leftovers(0, 64)]
    with pytest.raises(AssertionError):
        written(tmp_path).append(b"")


def test_of_a_segment_whose_header_is_torn_nothing_ever_counts(tmp_path: Path) -> None:
    """Its driver was slow, and another came between its claim and its header."""
    written(tmp_path, b"a").close()
    late = tmp_path / "000002.log"
    late.write_bytes(frame(header_payload(2, {1: 5}))[:-1])
    assert read(tmp_path) == [b"a"]
    third = written(tmp_path, b"c")
    assert third.epoch == 3
    late.write_bytes(frame(header_payload(2, {1: 5})) + frame(b"late"))
    assert read(tmp_path) == [b"a", b"c"]
    assert ignored(tmp_path)[1].num_frames == 2
    assert [payload for _, payload in written(tmp_path).earlier()] == [b"a", b"c"]


def test_damage_in_a_part_that_was_sealed_is_named_with_file_and_byte(tmp_path: Path) -> None:
    journal = written(tmp_path)
    position = journal.append(b"abc")
    journal.append(b"def")
    journal.close()
    file = tmp_path / "000001.log"
    content = bytearray(file.read_bytes())
    content[position.offset + 9] ^= 1
    file.write_bytes(content)
    assert read(tmp_path) == []  # not sealed: as good as torn
    file.write_bytes(content[: position.offset + 9] + b"b" + content[position.offset + 10 :])
    second = written(tmp_path, b"ghi")
    assert read(tmp_path) == [b"abc", b"def", b"ghi"]
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"000001\.log: damaged at byte {position.offset}, in a part"):
        read(tmp_path)
    with pytest.raises(UserError, match=rf"000001\.log: damaged at byte {position.offset}, in a part"):
        list(Journal.open(tmp_path).earlier())
    with pytest.raises(UserError, match=rf"000001\.log: damaged at byte {position.offset}"):
        second.read(position)


@pytest.mark.parametrize("num_bytes", [0, 10, 1_000])
def test_a_sealed_part_that_is_shorter_or_a_file_that_is_gone_is_damage(
    tmp_path: Path, num_bytes: int
) -> None:
    written(tmp_path, b"a" * 1_000).close()
    written(tmp_path).close()
    file = tmp_path / "000001.log"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=r"000001\.log: damaged at byte"):
        read(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"000001\.log: a part of the ledger is gone"):
        read(tmp_path)
    with pytest.raises(UserError, match="gone"):
        Journal.open(tmp_path)


def test_a_seal_in_the_middle_of_a_record_is_damage(tmp_path: Path) -> None:
    journal = written(tmp_path)
    positions = [journal.append(record) for record in (b"abc", b"def")]
    journal.close()
    sealed_bytes = {1: positions[1].offset - 1}
    (tmp_path / "000002.log").write_bytes(frame(header_payload(2, sealed_bytes)))
    with pytest.raises(UserError, match=rf"000001\.log: damaged at byte {positions[0].offset}, "):
        read(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "000001.log").write_bytes(frame(msgpack.packb({"format": 2})))
    with pytest.raises(UserError, match="has format 2, and this Leash reads 1"):
        survey(tmp_path)
