"""What trackers wrote, read back from their files with their own means."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from orchestration.trackers.tracker import Cell


@dataclass
class Written:
    """What a user of the tracker sees of a run."""

    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of each name, by step: what was written last."""
    samples: dict[int, list[list[Cell]]] = field(default_factory=dict)
    """Rows by step."""
    events: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    finished: bool = False


def read_tensorboard(folder: Path) -> Written:
    events = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()
    written = Written()
    for tag in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        written.figures[tag] = dict(points)
        assert len(points) == len(written.figures[tag]), "TensorBoard draws both courses"
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            text = event.tensor_proto.string_val[0].decode()
            if tag == "samples":
                written.samples[event.step] = list(map(list, _markdown_rows(text)))
            elif tag == "recipe":
                written.settings = {str(key): str(value) for key, value in _markdown_rows(text)}
            elif tag == "summary":
                written.finished = True
            else:
                written.events.append(text)
    return written


def read_wandb(folder: Path) -> Written:
    written = Written()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, _wandb_records(file)):
            match record.WhichOneof("record_type"):
                case "history":
                    _read_wandb_history(file.parent / "files", record, written)
                case "config":
                    updates = [(item.key, json.loads(item.value_json)) for item in record.config.update]
                    written.settings |= {key: str(value) for key, value in updates if key != "_wandb"}
                case "exit":
                    written.finished = record.exit.exit_code == 0
    return written


def read_mlflow(folder: Path, server: str | None = None, experiment_name: str = "movies") -> Written:
    """Of the run folder's files, or of a server."""
    client = MlflowClient(tracking_uri=server or (folder / "mlflow").absolute().as_uri())
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    written = Written(settings=dict(run.data.params), finished=run.info.status == "FINISHED")
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        written.figures[name] = {metric.step: metric.value for metric in history}
    for artifact in client.list_artifacts(run.info.run_id, "samples"):
        path = Path(client.download_artifacts(run.info.run_id, artifact.path))
        step = int(path.stem.removeprefix("step-"))
        written.samples[step] = json.loads(path.read_text())["data"]
    written.events = [value for key, value in run.data.tags.items() if key.startswith("event/")]
    return written


def _markdown_rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines()[2:]:
        cells = line.removeprefix("| ").removesuffix(" |").replace("\\|", "\0").split(" | ")
        yield [cell.replace("\0", "|").replace("\\\\", "\\").replace("↵ ", "\n") for cell in cells]


def _read_wandb_history(files: Path, record: Any, written: Written) -> None:
    items = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
    }
    step = items.pop("step")
    for name, value in items.items():
        if name == "samples/path":
            written.samples[step] = json.loads((files / value).read_text())["data"]
        elif name.startswith("samples/"):
            continue
        elif name.startswith("event/"):
            written.events.append(value)
        elif not name.startswith("_"):
            written.figures.setdefault(name, {})[step] = float(value)


def _wandb_records(file: Path) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB; each piece has a checksum, a length, and whether it is whole (1), the
    first (2), a middle (3) or the last (4) of a record. W&B puts 7 bytes of its own in front."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
