"""The policy on the held-out prompts on the way, and which version did best.

The last version is not always the one to keep: InstructGPT selects its supervised model by the reward model's
score on held-out prompts (arXiv:2203.02155, sec. 3.5).
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.messages import Rollout
from orchestration.run_folder import write_atomically

EVALUATIONS_FILE = "evaluations.jsonl"


class Selection:
    """One record an evaluation, kept in the run folder, and the best of them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / EVALUATIONS_FILE
        self.records: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        """Read what was recorded up to a step; later evaluations go, also from the file: they are made again."""
        if self._file.is_file():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            self.records = [record for record in map(json.loads, lines) if record["step"] <= step]
            self._write()

    def add(self, step: int, rollouts: Sequence[Rollout]) -> bool:
        """Record an evaluation; whether it is the best so far."""
        earlier = self.best
        record = {
            "step": step,
            "reward_mean": statistics.fmean(rollout.score for rollout in rollouts),
            "kl_nats_per_sequence": statistics.fmean(rollout.kl_nats for rollout in rollouts),
        }
        self.records.append(record)
        self._write()
        return record["reward_mean"] > (earlier["reward_mean"] if earlier else -math.inf)

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the highest mean reward; of equals the earliest."""
        return max(self.records, key=lambda record: float(record["reward_mean"]), default=None)

    def _write(self) -> None:
        write_atomically(self._file, "".join(json.dumps(one) + "\n" for one in self.records))
