"""What the loop and the workers report, told to all who watch: metrics hub, run folder, terminal, journal."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.fleet import Fleet
from actors.run_samples import rows_of
from actors.slot import WorkerState
from core.messages import RolloutGroup
from core.sample_files import SAMPLES_FOLDER, step_file
from core.worker_report import WorkerReport
from orchestration.alarm.monitor import Alarm, Monitor
from orchestration.ledger.ledger import Ledger
from orchestration.loop.step_record import learning_figures, rollout_figures, timing_figures
from orchestration.reporting.metrics_hub import MetricsHub
from orchestration.reporting.terminal import TerminalView
from orchestration.reporting.worker_figures import WorkerFigures
from orchestration.run_folder import append_line
from orchestration.trackers.sink import TrackerSink

NUM_EVENTS = 40
"""That a status tells of."""


class RunLog:
    """The trainer's observer."""

    def __init__(self, run_folder: Path, hub: MetricsHub, view: TerminalView, trackers: TrackerSink) -> None:
        self._folder = run_folder
        self._hub = hub
        self._view = view
        self._trackers = trackers
        self.on_policy = True
        """Whether what is trained on is the policy's own, and not a dataset's."""
        self.monitor: Monitor | None = None
        """Watches what is sampled, if it is to be watched."""
        self.alarms: list[Alarm] = []
        """Raised, and not yet acted on."""
        self.is_in_doubt = False
        """Whether the next steps may raise an alarm of what the last one began."""
        self._started = time.perf_counter()
        self._started_s = time.time()
        """Since 1970."""
        self._figures = WorkerFigures()
        self._checkpoint: tuple[float, int] | None = None
        """When the newest was committed, in seconds since 1970, and its bytes."""
        self._lengths = [0, 0]
        """Completions trained on, and their tokens."""
        self._reports: dict[str, WorkerReport] = {}
        """The latest of every worker that is not gone."""
        self._ended: set[str] = set()
        """Processes that are gone."""
        self.peak_memory: dict[str, int] = {}
        """Of every worker, in bytes, and their total; the largest so far."""
        self.records: list[dict[str, Any]] = []
        """One a step, as written to metrics.jsonl."""
        self.phase_name = "start"
        self.events: deque[str] = deque(maxlen=NUM_EVENTS)
        """The latest, with the time of day."""
        self.fleets: Mapping[str, Fleet[Any]] = {}
        """Workers by kind, once there are any."""
        self.ledger: Ledger | None = None
        """Where the run's events are journaled, once it is open."""
        (run_folder / SAMPLES_FOLDER).mkdir(exist_ok=True)

    def resume(self, records: list[dict[str, Any]]) -> None:
        """Go on after the last of these records, and forget any other. A run's clock goes on from there if another
        process had it until now."""
        if records and not self.records:
            self._started = time.perf_counter() - records[-1]["seconds_since_start"]
        self.records = records
        self._trackers.resume(records[-1]["step"] if records else 0)
        if self.monitor is not None:
            self.monitor.resume(records)

    def phase(self, name: str) -> None:
        """What the run does, or waits for, from now on."""
        self.phase_name = name
        self._view.phase(name)

    def last_step(self, steps: int) -> None:
        """The run now ends with this step."""
        self._view.last_step(steps)

    def note(self, text: str) -> None:
        self._view.note(text)

    def event(
        self, kind: str, text: str, details: Mapping[str, Any] | None = None, *, quiet: bool = False
    ) -> None:
        """Something happened to the run that is no step: for events.jsonl and the journal, with its details, and
        for trackers; for the status and the terminal too, unless it is `quiet`."""
        if not quiet:
            self.events.append(f"{time.strftime('%H:%M:%S')} {text}")
            self._view.note(text)
        self._trackers.event(kind, text)
        step = self.records[-1]["step"] if self.records else 0
        fields = {"text": text, **(details or {})}
        append_line(
            self._folder / "events.jsonl", {"time_s": time.time(), "step": step, "kind": kind, **fields}
        )
        if self.ledger is not None:  # what happens before it is open is not in it
            self.ledger.note(kind, fields)

    def order(self, kind: str, text: str, details: Mapping[str, Any]) -> None:
        """An event that a resumed run must know of: on disk once this returns."""
        assert self.ledger is not None, "orders are taken after it was opened"
        self.event(kind, text, details)
        self.ledger.sync()

    def worker_event(self, worker: str, event: str) -> None:
        """A worker joins, serves, dies or leaves."""
        self.event("worker", f"{worker} {event}")
        if event.startswith(("died", "left", "given up")):
            ranks = {name for name in self._reports if name.startswith(f"{worker}-")}  # die together
            for name in {worker} | ranks:
                self._hub.forget(name)
                self._figures.forget(name)
                if (latest := self._reports.pop(name, None)) is not None:
                    self._ended.add(latest.process)
        if event.startswith("died"):
            kind = worker.rpartition("-")[0] or worker
            self._hub.add("leash_worker_restarts_total", 1, kind=kind)
            self._figures.add("leash_worker_restarts_total", kind, 1)
        self._publish_states()

    def discard(self, number: int, num_rollouts: int, reason: str) -> None:
        """A group's completions will never be trained on; another prompt takes its place."""
        self._hub.add("leash_groups_discarded_total", 1, reason=reason)
        assert self.ledger is not None, "groups are sampled after it was opened"
        self.ledger.discard(number, num_rollouts, reason)

    def worker_report(self, worker: str, report: WorkerReport) -> None:
        """A worker says how it is. Several sides ask: a report may be overtaken by another on its way, or by its
        process' end."""
        if (latest := self._reports.get(worker)) is not None and latest.overtook(report):
            return
        if report.process in self._ended:
            return
        self._reports[worker] = report
        self._hub.worker(worker, report)
        self._publish_states()
        self._figures.report(worker, report)
        self.peak_memory[worker] = max(report.memory_bytes, self.peak_memory.get(worker, 0))

    def all_reported(self, reports: Mapping[str, WorkerReport]) -> None:
        """Every worker says at the same time how it is."""
        for worker, report in reports.items():
            self.worker_report(worker, report)
        total = sum(report.memory_bytes for report in reports.values())
        self.peak_memory["total"] = max(total, self.peak_memory.get("total", 0))

    def _publish_states(self) -> None:
        for kind, fleet in self.fleets.items():
            states = [slot.state for slot in fleet.slots]
            for state in WorkerState:
                self._hub.set("leash_workers", states.count(state), kind=kind, state=str(state))

    def retries(self, kind: str, total: int) -> None:
        """Times so far that work was given to another worker of a kind."""
        self._hub.follow("leash_retries_total", total, kind=kind)
        self._figures.follow("leash_retries_total", kind, total, begins_at=0.0)

    def checkpoint(self, folder: Path) -> None:
        """This is the newest: what a crash would lead back to."""
        num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        committed_s = folder.stat().st_mtime
        self._checkpoint = committed_s, num_bytes
        self._hub.set("leash_checkpoint_bytes", num_bytes)
        self._hub.set("leash_checkpoint_timestamp_seconds", committed_s)

    async def step(
        self,
        version: int,
        groups: Sequence[RolloutGroup],
        learning: dict[str, float],
        timing: dict[str, float],
    ) -> None:
        """A step is done: its weights, of this version, are in the engines."""
        record: dict[str, Any] = {"step": version}
        record["seconds_since_start"] = time.perf_counter() - self._started
        record |= rollout_figures(groups, version, on_policy=self.on_policy)
        record |= learning_figures(learning, lag=record.get("lag"))
        record |= timing_figures(groups, timing)
        record |= self._length_ratio(groups, timing)
        record |= self._system_figures()
        rows = [row for group in groups for row in rows_of(group)]
        write_samples(self._folder, rows, version)
        self.records.append(record)  # what happens from here on happens at this step
        record |= await self._audit(groups)
        append_line(self._folder / "metrics.jsonl", record)
        self._hub.publish(record)
        self._count(record, groups)
        self._trackers.step(record, rows)
        self._view.step(record)

    def _system_figures(self) -> dict[str, float]:
        """What the workers said since the last step, and what a crash would cost now."""
        for kind in self.fleets:
            self._figures.add("leash_worker_restarts_total", kind, 0)
        figures = self._figures.take()
        if self._checkpoint is not None:
            committed_s, num_bytes = self._checkpoint
            # What a run did before it was resumed is not at stake.
            since_s = max(committed_s, self._started_s)
            figures |= {"checkpoint_age_s": time.time() - since_s, "checkpoint_bytes": num_bytes}
        return figures

    async def _audit(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """What the alarm has to say of a step's completions. In a thread: workers must be answered meanwhile."""
        if self.monitor is None:
            return {}
        seen = await asyncio.to_thread(self.monitor.step, groups)
        for alarm in seen.alarms:
            self._hub.add("leash_alarms_total", 1, signal=alarm.signal)
            self.event("alarm", alarm.sentence)
        self.alarms += seen.alarms
        self.is_in_doubt = seen.is_in_doubt
        return seen.record

    def _count(self, record: dict[str, Any], groups: Sequence[RolloutGroup]) -> None:
        hub = self._hub
        hub.add("leash_steps_total", 1)
        hub.add("leash_rollouts_total", sum(len(group.rollouts) for group in groups))
        hub.add("leash_tokens_total", record["prompt_tokens"], kind="prompt")
        hub.add("leash_tokens_total", record["sampled_tokens"], kind="completion")
        for rollout in [rollout for group in groups for rollout in group.rollouts if self.on_policy]:
            hub.observe("leash_rollout_lag", record["step"] - 1 - rollout.completion.policy_version)
        if self.ledger is not None:
            hub.follow("leash_groups_refused_total", self.ledger.num_refused)
        waits = {"rollout": "wait_batch_s", "learn": "learn_s", "push": "push_s"}
        for phase, key in waits.items():
            hub.observe("leash_phase_seconds", record[key], phase=phase)

    def _length_ratio(self, groups: Sequence[RolloutGroup], timing: dict[str, float]) -> dict[str, float]:
        """Whether long or short completions are trained on less often than they are sampled."""
        if "sampled_length" not in timing:
            return {}
        self._lengths[0] += sum(len(group.rollouts) for group in groups)
        self._lengths[1] += sum(
            r.completion.num_completion_tokens for group in groups for r in group.rollouts
        )
        return {"trained_length_ratio": self._lengths[1] / self._lengths[0] / timing["sampled_length"]}


def write_samples(run_folder: Path, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Every rollout of a step, one a line."""
    step_file(run_folder, step).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
