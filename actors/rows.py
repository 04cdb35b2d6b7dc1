"""Rows of datasets, whatever they are stored in: (where, row) pairs, so that an error can say where it is.

JSON lines | Parquet | the `datasets` library -> ("file:3", {"prompt": ..., "chosen": ..., "rejected": ...})
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.config import HuggingFace, JsonLines, Parquet, RowsConfig
from core.errors import UserError
from core.hub import how_to_pin
from core.ratings import number_jsonl

Row = dict[str, object]


def read_rows(config: RowsConfig, required: tuple[str, ...] = ()) -> Iterator[tuple[str, Row]]:
    """Every row with its place. Null columns of tables are left out. Raises `UserError`, also for a row that
    lacks a required column."""
    match config:
        case JsonLines():
            for number, row in number_jsonl(Path(config.path), required):
                yield f"{config.path}:{number}", row
        case Parquet():
            if not Path(config.path).is_file():
                raise UserError(f"{config.path}: no such file; give the path of a Parquet file")
            table = _load(config.path, "parquet", data_files=config.path, split="train")
            yield from _rows_of(table, config.path, required)
        case HuggingFace():
            what = ", ".join(filter(None, (config.name, config.subset, config.split)))
            _check_pinned(config)
            table = _load(what, config.name, config.subset, split=config.split, revision=config.revision)
            yield from _rows_of(table, what, required)


def where_of(config: RowsConfig) -> str:
    """How messages call the whole of it."""
    return config.name if isinstance(config, HuggingFace) else config.path


def _check_pinned(config: HuggingFace) -> None:
    """Raises `UserError` for a dataset on the Hub that may be another tomorrow."""
    is_folder = Path(config.name).exists()
    if is_folder and config.revision is not None:
        raise UserError(
            f"{config.name}: is a folder, which has no revisions; leave revision out of its table"
        )
    if not is_folder and config.revision is None:
        raise UserError(
            f"{config.name}: a dataset on the Hub changes, and a run must be repeatable; add to its table "
            f"{how_to_pin(config.name, kind='dataset')}"
        )


def _rows_of(table: Any, what: str, required: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    for number, cells in enumerate(table):
        row = {name: value for name, value in cells.items() if value is not None}
        missing = [name for name in required if name not in row]
        if missing:
            raise UserError(
                f"{what}, row {number}: no column {missing[0]!r}, only {', '.join(row) or 'empty ones'}; "
                "fill it in, or name another column"
            )
        yield f"{what}, row {number}", row


def _load(what: str, *arguments: Any, **options: Any) -> Any:
    """By the `datasets` library, which raises a great variety of errors for data that it cannot read."""
    try:
        import datasets  # an extra: neither installed nor imported by those who do not use it
    except ImportError:
        raise UserError(
            f"{what}: is read by the `datasets` library; install it: pip install 'leash[datasets]'"
        ) from None
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(*arguments, **options)
    except Exception as error:  # its own, those of pyarrow, of the file system and of the network
        raise UserError(f"{what}: `datasets` cannot load it ({type(error).__name__}: {error})") from error
    if len(table) == 0:
        raise UserError(f"{what}: the dataset has no rows; give it some, or name another split")
    return table
