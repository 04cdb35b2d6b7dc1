"""Rows of one's own, from JSON lines, Parquet files and the `datasets` library: the same rows, the same errors."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from actors.config import HuggingFaceDataset, JsonLinesDataset, ParquetDataset, ParquetPrompts
from actors.prompts import load_prompts
from actors.rows import read_rows
from core.errors import UserError
from tests.fakes import FakeChatTokenizer

ROWS: list[dict[str, Any]] = [
    {"prompt": "the film", "chosen": " was good", "rejected": " was bad", "score_chosen": 2.0},
    {"prompt": "a story", "chosen": " to see", "rejected": " to miss", "score_chosen": None},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "rows.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


def test_a_parquet_file_gives_its_rows_without_what_is_null(parquet: Path) -> None:
    rows = list(read_rows(ParquetDataset(kind="parquet", path=str(parquet))))
    assert [row for _, row in rows] == [ROWS[0], {k: v for k, v in ROWS[1].items() if v is not None}]
    assert [where for where, _ in rows] == [f"{parquet}, row 0", f"{parquet}, row 1"]


def test_a_folder_is_a_dataset_with_splits(parquet: Path) -> None:
    config = HuggingFaceDataset(kind="huggingface", name=str(parquet.parent), split="train[1:]")
    [(where, row)] = read_rows(config)
    assert row["prompt"] == "a story"
    assert where == f"{parquet.parent}, train[1:], row 0"


def test_prompts_come_from_a_column_of_a_table(parquet: Path) -> None:
    training, heldout = load_prompts(
        ParquetPrompts(kind="parquet", path=str(parquet), heldout_fraction=0.5),
        FakeChatTokenizer(),
        data_folder=None,
        num_heldout=1,
        max_prompt_tokens=4,
    )
    assert {prompt.text for prompt in training + heldout} == {"the film", "a story"}
    assert {prompt.columns["chosen"] for prompt in training + heldout} == {" was good", " to see"}


def test_a_row_without_a_required_column_is_named(parquet: Path) -> None:
    config = ParquetPrompts(kind="parquet", path=str(parquet), column="score_chosen")
    with pytest.raises(
        UserError, match=f"{parquet}, row 1: no column 'score_chosen', only prompt, chosen, rejec"
    ):
        list(read_rows(config, ("score_chosen",)))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.parquet: no such file"):
        list(read_rows(ParquetDataset(kind="parquet", path=str(tmp_path / "gone.parquet"))))
    broken = tmp_path / "broken.parquet"
    broken.write_text("not Parquet at all")
    with pytest.raises(UserError, match="broken.parquet: `datasets` cannot load it"):
        list(read_rows(ParquetDataset(kind="parquet", path=str(broken))))


def test_a_split_that_is_not_there(parquet: Path) -> None:
    config = HuggingFaceDataset(kind="huggingface", name=str(parquet.parent), split="test")
    with pytest.raises(UserError, match='Unknown split "test"'):
        list(read_rows(config))


def test_a_dataset_on_the_hub_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = HuggingFaceDataset(kind="huggingface", name="lab/rows", revision="a" * 40, split="train[:2]")
    assert len(list(read_rows(config))) == 2
    assert asked == [(("lab/rows", None), {"split": "train[:2]", "revision": "a" * 40})]


def test_a_dataset_on_the_hub_without_a_revision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.rows.how_to_pin", lambda name, kind: f"the revision of {kind} {name}")
    with pytest.raises(UserError, match="^lab/rows: .*; add to its table the revision of dataset lab/rows$"):
        list(read_rows(HuggingFaceDataset(kind="huggingface", name="lab/rows")))


def test_a_folder_has_no_revision(parquet: Path) -> None:
    config = HuggingFaceDataset(kind="huggingface", name=str(parquet.parent), revision="a" * 40)
    with pytest.raises(
        UserError, match=f"{parquet.parent}: is a folder, which has no revisions; leave revision out"
    ):
        list(read_rows(config))


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    datasets.Dataset.from_list(ROWS).select([]).to_parquet(path)
    with pytest.raises(UserError, match="empty.parquet: "):
        list(read_rows(ParquetDataset(kind="parquet", path=str(path))))


def test_without_the_library_the_remedy_is_named(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'leash\[datasets\]'"):
        list(read_rows(ParquetDataset(kind="parquet", path=str(parquet))))


def test_json_lines_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    rows = list(read_rows(JsonLinesDataset(kind="jsonl", path=str(path))))
    assert rows == [(f"{path}:1", {"text": "one"}), (f"{path}:3", {"text": "two"})]
