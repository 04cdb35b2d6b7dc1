"""What the loop reports, turned into one record a step: for the metrics hub, the run folder and the terminal."""

import json
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.run_samples import rows_of
from actors.slot import WorkerState
from core.messages import RolloutGroup
from orchestration.ledger import Ledger
from orchestration.metrics_hub import MetricsHub
from orchestration.terminal import TerminalView

NUM_EVENTS = 20
"""That a status tells of."""


class RunLog:
    """The trainer's observer."""

    def __init__(self, run_folder: Path, hub: MetricsHub, view: TerminalView) -> None:
        self._folder = run_folder
        self._hub = hub
        self._view = view
        self._started = time.perf_counter()
        self.records: list[dict[str, Any]] = []
        """One a step, as written to metrics.jsonl."""
        self.phase_name = "start"
        self.events: deque[str] = deque(maxlen=NUM_EVENTS)
        """The latest, with the time of day."""
        self.ledger: Ledger | None = None
        """Where the run's events are journaled, once it is open."""
        (run_folder / "samples").mkdir(exist_ok=True)

    def phase(self, name: str) -> None:
        """What the run does, or waits for, from now on."""
        self.phase_name = name
        self._view.phase(name)

    def note(self, text: str) -> None:
        self._view.note(text)

    def event(self, kind: str, text: str) -> None:
        """Something happened to the run that is no step: for the terminal, the status and the journal."""
        self.events.append(f"{time.strftime('%H:%M:%S')} {text}")
        self._view.note(text)
        if self.ledger is not None:  # what happens before it is open is not in it
            self.ledger.note(kind, {"text": text})

    def worker_event(self, worker: str, event: str) -> None:
        """A worker joins, dies or leaves."""
        self.event("worker", f"{worker} {event}")
        if event.startswith("died"):
            self._hub.add("leash_worker_restarts_total", 1, kind=worker.rpartition("-")[0] or worker)

    def discard(self, number: int, num_rollouts: int, reason: str) -> None:
        """A group's completions will never be trained on; another prompt takes its place."""
        self._hub.add("leash_groups_discarded_total", 1, reason=reason)
        assert self.ledger is not None, "groups are sampled after it was opened"
        self.ledger.discard(number, num_rollouts, reason)

    def workers(self, kind: str, states: Sequence[WorkerState]) -> None:
        """The states of the workers of a kind."""
        for state in WorkerState:
            self._hub.set("leash_workers", states.count(state), kind=kind, state=str(state))

    def memory(self, sizes: dict[str, int]) -> None:
        """Memory of each worker, by its stable name."""
        for worker, size in sizes.items():
            self._hub.set("leash_worker_memory_bytes", size, worker=worker)

    def step(
        self,
        version: int,
        groups: Sequence[RolloutGroup],
        learning: dict[str, float],
        timing: dict[str, float],
    ) -> None:
        """A step is done: its weights, of this version, are in the engines."""
        lag = version - 1 - min(group.policy_version for group in groups)
        record: dict[str, Any] = {"step": version, "lag": lag}
        record["seconds_since_start"] = time.perf_counter() - self._started
        record |= _rollout_figures(groups) | learning | _timing_figures(groups, timing)
        self.records.append(record)
        self._hub.record_step(self._folder / "metrics.jsonl", record)
        self._hub.publish(record)
        self._count(record, groups)
        self._write_samples(groups, record["step"])
        self._view.step(record)

    def _count(self, record: dict[str, Any], groups: Sequence[RolloutGroup]) -> None:
        hub = self._hub
        hub.add("leash_steps_total", 1)
        hub.add("leash_rollouts_total", sum(len(group.rollouts) for group in groups))
        hub.add("leash_tokens_total", record["prompt_tokens"], kind="prompt")
        hub.add("leash_tokens_total", record["sampled_tokens"], kind="completion")
        for phase in ("rollout", "learn", "push"):
            hub.observe("leash_phase_seconds", record[f"{phase}_s"], phase=phase)

    def _write_samples(self, groups: Sequence[RolloutGroup], step: int) -> None:
        lines = [json.dumps(row) for group in groups for row in rows_of(group)]
        (self._folder / "samples" / f"step-{step:06d}.jsonl").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )


def _rollout_figures(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    scores = [rollout.score for rollout in rollouts]
    prompt_tokens = sum(completion.num_prompt_tokens for completion in completions)
    sampled_tokens = sum(completion.num_completion_tokens for completion in completions)
    return {
        "score_mean": statistics.fmean(scores),
        "score_std": statistics.pstdev(scores),
        **{
            f"reward_{source}": statistics.fmean(rollout.rewards[source] for rollout in rollouts)
            for source in rollouts[0].rewards
        },
        "kl_nats_per_sequence": statistics.fmean(rollout.kl_nats for rollout in rollouts),
        "completion_tokens": sampled_tokens / len(rollouts),
        "truncated_fraction": statistics.fmean(completion.truncated for completion in completions),
        "prompt_tokens": prompt_tokens,
        "sampled_tokens": sampled_tokens,
        "tokens": prompt_tokens + sampled_tokens,
    }


def _timing_figures(groups: Sequence[RolloutGroup], timing: dict[str, float]) -> dict[str, Any]:
    step_s = timing["rollout_s"] + timing["learn_s"] + timing["push_s"]
    tokens = sum(group.num_tokens for group in groups)
    sampled_tokens = sum(
        rollout.completion.num_completion_tokens for group in groups for rollout in group.rollouts
    )
    durations = {name: value for name, value in timing.items() if name != "started"}
    return durations | {
        "step_s": step_s,
        "tokens_per_second_rollout": sampled_tokens / timing["rollout_s"],
        "tokens_per_second_learner": tokens / timing["learn_s"],
        "tokens_per_second_run": tokens / step_s,
    }
