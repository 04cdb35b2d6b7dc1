"""The learner alone, on the rollouts that a run has journaled: half of the system, and the same updates again.

The same rollouts in the same order from the same weights, with the settings that each step had: on the same
machine and number of ranks the policy comes out the same, bit for bit.
"""

import asyncio
from pathlib import Path
from typing import Any

from actors.fleet import Fleet
from actors.rollout import RolloutPool
from core.errors import UserError
from core.messages import RolloutGroup
from orchestration.checkpoints import Checkpoints
from orchestration.cluster import launch
from orchestration.inputs import RunInputs
from orchestration.ledger.audit import committed_groups, notes
from orchestration.ledger.records import Acknowledged, unpack, unpack_group
from orchestration.ledger.segments import read_record
from orchestration.loop.trainer import Trainer
from orchestration.recipe.config import Recipe
from orchestration.recipe.live_settings import EVENT, LiveSettings, journaled
from orchestration.recipe.loading import load_recipe
from orchestration.reporting.metrics_hub import MetricsHub
from orchestration.reporting.run_log import RunLog
from orchestration.reporting.terminal import TerminalView
from orchestration.run_folder import LEDGER_FOLDER, RunFolder, check_free
from orchestration.trackers.sink import TrackerSink


class ReplayedGroups:
    """The groups that were trained on in a run's committed steps. Their numbers are their places in that order."""

    on_policy = False

    def __init__(self, run: Path, *, groups_per_step: int) -> None:
        self._ledger = run / LEDGER_FOLDER
        self._positions = committed_groups(run)
        self.num_steps = len(self._positions) // groups_per_step
        if not self.num_steps:
            raise UserError(f"{run}: no step of it is committed, so there is nothing to learn from yet")

    async def group(self, number: int) -> RolloutGroup:
        """As it was trained on."""
        record = unpack(read_record(self._ledger, self._positions[number]))
        assert isinstance(record, Acknowledged), record
        return unpack_group(record.group)


def learn(run: Path, into: Path) -> None:
    """Train on the committed steps of a run, into another folder: its metrics.jsonl, checkpoint and model."""
    if not (run / "recipe.toml").is_file():
        raise UserError(f"{run}: no recipe.toml in it; give the folder of a run")
    recipe = load_recipe(run / "recipe.toml")
    if recipe.datasets:
        raise UserError(f"{run}: it learned from datasets, so it has journaled no rollouts")
    source = ReplayedGroups(run, groups_per_step=recipe.trainer.prompts_per_step)
    check_free(into)
    inputs, folder = RunInputs(recipe), RunFolder.create(recipe, into)
    view = TerminalView()
    view.start(f"{recipe.name}, learner alone", source.num_steps)
    view.note(f"{source.num_steps} committed steps of {run}, into {folder.path}")
    hub = MetricsHub(None)
    try:
        with launch.joined(None):
            log = RunLog(folder.path, hub, view, TrackerSink({}, note=view.note, samples_per_step=0))
            asyncio.run(_learn(recipe, inputs, run, source, folder, log))
    finally:
        view.stop()
        hub.close()


async def _learn(
    recipe: Recipe, inputs: RunInputs, run: Path, source: ReplayedGroups, folder: RunFolder, log: RunLog
) -> None:
    changes = journaled(notes(run, EVENT))
    of_workers = ("rollout.", "faults.")  # nothing to a learner alone
    settings = LiveSettings(recipe, [c for c in changes if not c.key.startswith(of_workers)])
    log.phase("start")
    async with launch.started_learner(recipe, inputs) as learner:
        checkpoints = Checkpoints(recipe, folder, learner, log, journals_groups=False)
        await checkpoints.resume()
        nobody: Fleet[Any] = Fleet("rollout", _no_worker, faults=recipe.faults, start_s=1)
        trainer = Trainer(
            pool=RolloutPool(nobody, _NoReference(), {}),
            learner=learner,
            source=source,
            observer=log,
            ledger=checkpoints.ledger,
            prompts_per_step=recipe.trainer.prompts_per_step,
            max_lag=0,
            deadlines=recipe.deadlines,
        )

        async def as_set_then(step: int) -> None:
            await learner.configure(settings.learner_at(step))

        async def nothing(version: int) -> None: ...

        try:
            reached = await trainer.train(
                start=0, stop=source.num_steps, before_step=as_set_then, after_step=nothing
            )
            log.phase("save")
            await checkpoints.save(reached)
            await learner.save_model((folder.path / "model").absolute())
        finally:
            checkpoints.close()


def _no_worker(name: str) -> Any:
    raise AssertionError("a learner alone starts no rollout worker")


class _NoReference:
    """Journaled rollouts are scored already."""

    async def score(self, completion: Any) -> Any:
        raise AssertionError("a learner alone scores nothing")
