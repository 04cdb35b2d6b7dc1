"""The door to TensorBoard: event files in the run folder. Needs neither torch nor TensorFlow."""

import json
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from orchestration.run_folder import jsonable
from orchestration.trackers.tracker import Cell, Table, TrackedRun


class TensorBoardTracker:
    """Figures as scalars; samples, events, recipe and summary as text."""

    def __init__(self, run: TrackedRun) -> None:
        folder = run.folder / "tensorboard"
        is_new = not folder.exists()
        self._writer = EventFileWriter(str(folder))
        self._step: int | None = None
        if is_new:
            rows = tuple((key, "" if value is None else value) for key, value in run.settings.items())
            self._write(0, _text("recipe", _markdown(Table(("key", "value"), rows))))

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        if self._step is None or step <= self._step:
            # What an earlier course wrote of this step and later ones is left out by readers from here on.
            self._add(step, session_log=SessionLog(status=SessionLog.START))
        self._step = step
        self._write(step, *(Summary.Value(tag=name, simple_value=value) for name, value in figures.items()))

    def samples(self, step: int, table: Table) -> None:
        self._write(step, _text("samples", _markdown(table)))

    def event(self, step: int, kind: str, text: str) -> None:
        self._write(step, _text(f"event/{kind}", text))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            content = json.dumps(jsonable(summary), indent=2)
            self._write(self._step or 0, _text("summary", f"```\n{content}\n```"))
        self._writer.close()

    def _write(self, step: int, *values: Summary.Value) -> None:
        self._add(step, summary=Summary(value=values))
        self._writer.flush()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))


def _text(tag: str, text: str) -> Summary.Value:
    return Summary.Value(
        tag=tag,
        metadata=create_summary_metadata(display_name=tag, description=""),
        tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    )


def _markdown(table: Table) -> str:
    """TensorBoard shows text as Markdown, and takes dangerous HTML out itself."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Cell | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "↵ ")
