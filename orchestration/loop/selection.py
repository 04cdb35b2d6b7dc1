"""The policy on the held-out prompts on the way, and which version did best.

The last version is not always the one to keep: InstructGPT selects its supervised model by the reward model's
score on held-out prompts (arXiv:2203.02155, sec. 3.5).
"""

import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.messages import Rollout
from orchestration.run_folder import write_atomically

EVALUATIONS_FILE = "evaluations.jsonl"
EVALUATION_FILE = "evaluation.json"
"""Beside the best model: its own."""


class Selection:
    """One record an evaluation, kept in the run folder, and the best of them.

    if selection.add(step, rollouts):     # the best so far
        save_model(selection.model)
        selection.saved()                 # from here on a resumed run knows which step's it is
    """

    def __init__(self, folder: Path, *, saves_model: bool) -> None:
        self._file = folder / EVALUATIONS_FILE
        self.model = folder / "model-best"
        self._saves_model = saves_model
        self.records: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        """The evaluation with the highest mean reward, of equals the earliest. If models are saved, of those since
        the one whose model was last lost."""

    def resume(self, step: int) -> int | None:
        """Read what was recorded up to a step; later evaluations go, also from the file: they are made again. A
        best model of a later step is removed, and its step given back: the one of before gave way to it."""
        if self._file.is_file():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            self.records = [record for record in map(json.loads, lines) if record["step"] <= step]
            self._write()
        saved, lost = self._saved_one(), None
        if saved is not None and saved["step"] > step:
            shutil.rmtree(self.model)
            lost = int(saved["step"])
            saved = None
        best = max(self.records, key=lambda record: float(record["reward_mean"]), default=None)
        self.best = saved if self._saves_model else best
        return lost

    def add(self, step: int, rollouts: Sequence[Rollout]) -> bool:
        """Record an evaluation; whether it is the best so far."""
        record = {
            "step": step,
            "reward_mean": statistics.fmean(rollout.score for rollout in rollouts),
            "kl_nats_per_sequence": statistics.fmean(rollout.kl_nats for rollout in rollouts),
        }
        self.records.append(record)
        self._write()
        if self.best is not None and not record["reward_mean"] > self.best["reward_mean"]:
            return False
        self.best = record
        return True

    def saved(self) -> None:
        """The model of the best evaluation is in its folder."""
        write_atomically(self.model / EVALUATION_FILE, json.dumps(self.best) + "\n")

    def _saved_one(self) -> dict[str, Any] | None:
        """The evaluation of the model that was saved; None without one, or if the run was cut off while it was
        saved: then the next one takes its place."""
        file = self.model / EVALUATION_FILE
        if not file.is_file():
            return None
        saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return saved

    def _write(self) -> None:
        write_atomically(self._file, "".join(json.dumps(one) + "\n" for one in self.records))
