"""The door to Weights & Biases: one run of theirs for one of ours, offline in the run folder or online."""

import secrets
from collections.abc import Mapping
from typing import Any

import wandb

from orchestration.run_folder import write_atomically
from orchestration.trackers.config import WandbConfig
from orchestration.trackers.tracker import Table, TrackedRun, numbers_of

STEP = "step"
"""Their own step can only grow, and drops what is written again after a resume; charts go by this one instead."""


class WandbTracker:
    """Figures as history over the step, samples as tables."""

    def __init__(self, run: TrackedRun, config: WandbConfig) -> None:
        folder = run.folder / "wandb"
        folder.mkdir(exist_ok=True)
        id_file = folder / "run-id.txt"
        if not id_file.exists():
            write_atomically(id_file, secrets.token_hex(8))
        self._run = wandb.init(
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=run.folder.absolute(),
            name=run.name,
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            settings=wandb.Settings(
                console="off",  # the terminal shows the run
                silent=True,
                disable_git=True,
                save_code=False,
                reinit="create_new",
            ),
        )
        self._run.config.update(dict(run.settings), allow_val_change=True)  # type: ignore[no-untyped-call]
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **figures})

    def samples(self, step: int, table: Table) -> None:
        rows = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        self._run.log({STEP: step, "samples": rows})

    def event(self, step: int, kind: str, text: str) -> None:
        self._run.log({STEP: step, f"event/{kind}": text})

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(numbers_of(summary))
        self._run.finish(exit_code=1 if summary is None else 0)
        wandb.teardown()  # `finish` returns before the last of it is in the file
