"""The trajectories of a run's ledger as one file: JSON lines, or Parquet by way of pyarrow."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError

Row = Mapping[str, Any]
"""As `orchestration.ledger.audit.exported_rows` gives it."""

_ROWS_PER_BATCH = 1000
"""Rows of a Parquet row group, and all that is held in memory: some MB."""


def export(rows: Iterable[Row], file: Path) -> int:
    """Write the rows, as the file's suffix says; how many. Another file of this name is replaced, by the whole
    export or not at all. Raises `UserError` for a suffix or a folder that will not do."""
    write = _writer(file)
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        num_rows = write(rows, unfinished)
        unfinished.rename(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return num_rows


def _writer(file: Path) -> Callable[[Iterable[Row], Path], int]:
    match file.suffix:
        case ".jsonl":
            return _write_json_lines
        case ".parquet":
            return _write_parquet
        case suffix:
            raise UserError(
                f"{file}: {suffix or 'no suffix'}: a file ends in .jsonl (JSON lines) or .parquet (Parquet)"
            )


def _write_json_lines(rows: Iterable[Row], file: Path) -> int:
    num_rows = 0
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")
            num_rows += 1
    return num_rows


def _write_parquet(rows: Iterable[Row], file: Path) -> int:
    try:
        # An extra: neither installed nor imported by those who do not use it.
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(
            f"{file}: Parquet is written by pyarrow; install it with pip install 'leash[datasets]', "
            "or export to a .jsonl"
        ) from None
    schema = _schema(pyarrow)
    num_rows = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in _batches(rows):
            for row in batch:
                assert row.keys() == set(schema.names), "a column of exported_rows without a type in _schema"
            content = [{**row, "rewards": list(row["rewards"].items())} for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(content, schema=schema))
            num_rows += len(batch)
    return num_rows


def _schema(pyarrow: Any) -> Any:
    """Of every row. Inferred, it would depend on which steps and reasons the first rows have."""
    text, integer, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    logprobs = pyarrow.list_(pyarrow.float32())
    return pyarrow.schema(
        {
            "number": integer,
            "group": text,
            "fate": text,
            "step": integer,
            "reason": text,
            "policy_version": integer,
            "prompt": text,
            "completion": text,
            "prompt_tokens": integer,
            "token_ids": pyarrow.list_(pyarrow.int32()),
            "truncated": pyarrow.bool_(),
            "behavior_logprobs": logprobs,
            "reference_logprobs": logprobs,
            "rewards": pyarrow.map_(text, real),
            "score": real,
            "kl_nats": real,
        }.items()
    )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, _ROWS_PER_BATCH)):
        yield batch
