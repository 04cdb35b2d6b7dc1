"""The export of a real ledger, read back."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from orchestration.ledger.audit import exported_rows
from orchestration.ledger.export import export
from orchestration.ledger.ledger import Ledger
from tests.fakes import make_completion, make_group, make_rollout

Row = dict[str, Any]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Of a run with a committed step of two groups, a group that was discarded, and one that waits."""
    ledger = Ledger.open(tmp_path, committed_step=0, groups_per_step=2, journals_groups=True)
    groups = []
    for number in range(4):
        rollouts = [make_rollout(make_completion(), score=float(number)) for _ in range(2)]
        groups.append(make_group(f"group-{number}", rollouts))
        assert ledger.acknowledge(ledger.lease(number), groups[-1])
    ledger.discard_durable(3, "its policy is gone")
    ledger.begin_step(1, dict(enumerate(groups[:2])))
    ledger.commit(1)
    ledger.close()
    return list(exported_rows(tmp_path))


def test_json_lines_are_the_rows(rows: list[Row], tmp_path: Path) -> None:
    assert export(rows, tmp_path / "rows.jsonl") == 8
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize("rows_per_batch", [1000, 3])
def test_parquet_is_the_rows(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_batch: int
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("orchestration.ledger.export._ROWS_PER_BATCH", rows_per_batch)
    assert export(rows, tmp_path / "rows.parquet") == 8
    read = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    for row, expected in zip(read, rows, strict=True):
        assert row | {"rewards": dict(row["rewards"])} == expected | {
            key: pytest.approx(expected[key], rel=1e-6) for key in ("behavior_logprobs", "reference_logprobs")
        }
    assert {row["step"] for row in read} == {1, None}
    assert {row["reason"] for row in read} == {"its policy is gone", None}


def test_no_rows_are_an_empty_file(tmp_path: Path) -> None:
    assert export([], tmp_path / "rows.jsonl") == 0
    assert (tmp_path / "rows.jsonl").read_text() == ""
    parquet = pytest.importorskip("pyarrow.parquet")
    assert export([], tmp_path / "rows.parquet") == 0
    assert parquet.read_table(tmp_path / "rows.parquet").num_rows == 0


def test_parquet_without_pyarrow_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'leash\[datasets\]'"):
        export([], tmp_path / "rows.parquet")
    assert export([], tmp_path / "rows.jsonl") == 0


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.PARQUET", ".jsonl"])
def test_another_suffix_is_refused_before_a_row_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"ends in .jsonl \(JSON lines\) or .parquet \(Parquet\)"):
        export(broken(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_off_leaves_the_file_before_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("an earlier export")
    with pytest.raises(UserError, match="the ledger is damaged"):
        export(broken(), file)
    assert file.read_text() == "an earlier export"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=f"nowhere/{name}: cannot be written .*; name another file"):
        export([], tmp_path / "nowhere" / name)


def broken() -> Iterator[Row]:
    yield {"number": 0}
    raise UserError("the ledger is damaged")
