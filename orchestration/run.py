"""One run from recipe to summary: workers up, evaluate, train, evaluate again, report.

The loop itself is `orchestration/loop/trainer.py`.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from core.errors import LearnerLost, UserError
from core.worker_report import own_report
from orchestration.alarm.monitor import monitor_of
from orchestration.checkpoints import Checkpoints
from orchestration.cluster import launch
from orchestration.control.run_controls import RunControls, resumed_settings
from orchestration.control.server import ControlServer
from orchestration.dashboard.server import beside
from orchestration.inputs import RunInputs
from orchestration.interrupts import Interrupts
from orchestration.loop.heldout import HeldOut
from orchestration.loop.sources import DatasetGroups, GroupSource, sampled_groups
from orchestration.loop.trainer import Trainer
from orchestration.monitoring.discovery import announced
from orchestration.recipe.config import Recipe
from orchestration.reporting.metrics_hub import MetricsHub
from orchestration.reporting.run_log import RunLog
from orchestration.reporting.summary import run_figures
from orchestration.reporting.terminal import TerminalView, before_after_markdown, before_after_table
from orchestration.reward_functions import require_functions
from orchestration.run_folder import RunFolder, check_free, write_atomically, write_json
from orchestration.trackers.opening import flat_settings, open_trackers, require_trackers
from orchestration.trackers.sink import TrackerSink
from orchestration.trackers.tracker import TrackedRun


def train(recipe: Recipe, *, run_folder: Path | None, resume: bool, address: str | None) -> dict[str, Any]:
    """Run the recipe to its end, or until told to stop; the summary. Ctrl-C and SIGTERM save and exit."""
    started = time.perf_counter()
    require_trackers(recipe.trackers)
    if launch.starts_own(address):
        require_functions(recipe)
    # The folder first: the inputs may include minutes of training a reward model.
    if resume:
        assert run_folder is not None, "the command line asks for the folder"
        folder = RunFolder.reopen(recipe, run_folder)
        inputs = RunInputs(recipe)
    else:
        if run_folder is not None:
            check_free(run_folder)
        inputs = RunInputs(recipe)
        folder = RunFolder.create(recipe, run_folder)
    try:
        hub = MetricsHub(recipe.metrics.port, recipe.metrics.host)
    except UserError:
        folder.discard_if_untrained()
        raise
    view = TerminalView()
    view.start(recipe.name, recipe.trainer.steps)
    write_atomically(folder.path / "metrics-url.txt", f"{hub.url}\n")
    view.note(f"run folder {folder.path}, metrics at {hub.url}")
    if (epoch := inputs.steps_per_epoch(recipe.trainer.prompts_per_step)) is not None:
        view.note(f"an epoch is {epoch} steps")
    discovery = recipe.metrics.discovery_folder
    try:
        with (
            announced(
                Path(discovery) if discovery else None, url=hub.url, run=folder.path, recipe=recipe.name
            ),
            beside(folder.path, host=recipe.dashboard.host, port=recipe.dashboard.port) as page,
            launch.joined(address),
        ):
            if page is not None:
                view.note(f"watch it at {page}")
            tracked = TrackedRun(
                name=folder.path.name, folder=folder.path, settings=flat_settings(recipe.model_dump())
            )
            trackers = open_trackers(recipe.trackers, tracked, note=view.note)
            summary = None
            try:
                summary = asyncio.run(Run(recipe, inputs, folder, hub, view, trackers, started).execute())
                return summary
            finally:
                trackers.close(summary)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except UserError:
        folder.discard_if_untrained()
        raise
    finally:
        view.stop()
        hub.close()


class Run:
    """The parts of one run, put together."""

    def __init__(
        self,
        recipe: Recipe,
        inputs: RunInputs,
        folder: RunFolder,
        hub: MetricsHub,
        view: TerminalView,
        trackers: TrackerSink,
        started: float,
    ) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._folder = folder
        self._view = view
        self._log = RunLog(folder.path, hub, view, trackers)
        self._log.on_policy = not recipe.datasets
        if recipe.alarm.enabled and not recipe.datasets:  # of a dataset's texts none is the policy's
            self._log.monitor = monitor_of(recipe, folder.path)
        self._hub = hub
        self._started = started
        self._seconds_to_first_step: float | None = None
        self._learner_restarts = 0
        """Since the last checkpoint: a learner that dies before the next one every time is not worth more."""
        self._is_checkpoint_due = False
        """Also one that waits until no signal of the alarm is in doubt."""
        self._interrupts = Interrupts(lambda: self._stop())
        self._stop = self._interrupts.cancel

    async def execute(self) -> dict[str, Any]:
        """Start the workers, train, compare, and write the summary."""
        with self._interrupts:
            self._log.phase("start")
            async with launch.started(self._recipe, self._inputs, self._log) as self._workers:
                self._log.fleets = self._workers.fleets
                self._checkpoints = Checkpoints(
                    self._recipe,
                    self._folder,
                    self._workers.learner,
                    self._log,
                    journals_groups=not self._recipe.datasets,
                )
                self._heldout = HeldOut(
                    self._recipe, self._inputs, self._workers, self._folder, note=self._log.note
                )
                try:
                    return await self._train_and_compare()
                finally:
                    self._checkpoints.close()

    async def _train_and_compare(self) -> dict[str, Any]:
        start = await self._checkpoints.resume()
        self._log.ledger = self._checkpoints.ledger
        self._heldout.resume(start)
        trainer = self._make_trainer()
        settings = resumed_settings(self._recipe, self._folder, start, self._checkpoints.ledger, self._log)
        self._controls = RunControls(settings, start, trainer, self._workers, self._log)
        self._log.last_step(self._controls.num_steps)
        server = ControlServer(self._folder.path, self._controls)
        try:
            await server.start()
            await trainer.push_weights()
            self._log.phase("evaluate")
            await self._heldout.before(start)
            return await self._finish(await self._train(trainer, start))
        finally:
            await server.close()

    async def _train(self, trainer: Trainer, reached: int) -> int:
        """To the last step, which is given back, or to the step in which a signal asked to stop; saved in both
        cases. More steps may be ordered until then."""
        self._stop = trainer.stop
        while reached < self._controls.num_steps and not trainer.is_stopping:
            try:
                reached = await trainer.train(
                    start=reached,
                    stop=self._controls.num_steps,
                    before_step=self._controls.before_step,
                    after_step=self._after_step,
                )
                if reached > self._checkpoints.committed_step and not self._is_better_done_again(reached):
                    await self._save_checkpoint(reached)
            except LearnerLost as error:
                reached = await self._restart_learner(trainer, error)
        self._controls.is_over = True
        if reached < self._controls.num_steps:
            saved = self._checkpoints.committed_step
            kept = f" (saved: step {saved}, from before a sign of cheating)" if saved < reached else ""
            self._view.note(
                f"stopped after step {reached}{kept}; go on with --run {self._folder.path} --resume"
            )
            raise KeyboardInterrupt
        self._checkpoints.ledger.finish("the run has reached its last step")
        self._stop = self._interrupts.cancel
        return reached

    async def _restart_learner(self, trainer: Trainer, error: LearnerLost) -> int:
        """After the death of a rank: all ranks anew, at the last checkpoint; its version."""
        while True:
            self._learner_restarts += 1
            if self._learner_restarts > self._controls.recipe.faults.max_restarts:
                raise error
            self._log.worker_event("learner", f"died: {error}")
            self._log.phase("start")
            self._workers.pool.forget_weights()
            try:
                await self._workers.learner.restart()
                version = await self._checkpoints.roll_back()
                self._heldout.resume(version)
                self._controls.go_back(version)
                await trainer.push_weights()
                return version
            except LearnerLost as again:
                error = again

    async def _finish(self, version: int) -> dict[str, Any]:
        """Evaluate again, compare, and write what people and scripts read."""
        self._log.phase("evaluate")
        rows, figures = await self._heldout.after(
            version, select=self._controls.recipe.trainer.evaluate_every > 0
        )
        await self._hear_all()
        self._log.phase("save")
        if self._recipe.trainer.save_model:
            await self._workers.learner.save_model((self._folder.path / "model").absolute())
        summary = figures | run_figures(
            self._controls.recipe,
            self._log.records,
            memory=self._log.peak_memory,
            reward_model=self._inputs.reward_model_metrics,
            seconds_for_reward_model=self._inputs.seconds_for_reward_model,
            seconds_to_first_step=self._seconds_to_first_step,
            seconds_total=time.perf_counter() - self._started,
        )
        write_json(self._folder.path / "summary.json", summary)
        write_atomically(self._folder.path / "before-after.md", before_after_markdown(rows, summary))
        self._view.stop()
        before_after_table(rows, summary)
        return summary

    def _make_trainer(self) -> Trainer:
        recipe = self._recipe
        return Trainer(
            pool=self._workers.pool,
            learner=self._workers.learner,
            source=self._make_source(),
            observer=self._log,
            ledger=self._checkpoints.ledger,
            prompts_per_step=recipe.trainer.prompts_per_step,
            max_lag=recipe.trainer.max_lag,
            max_overtaken=recipe.trainer.max_overtaken,
            deadlines=recipe.deadlines,
            evaluate_every=recipe.trainer.evaluate_every,
        )

    def _make_source(self) -> GroupSource:
        recipe, pool = self._recipe, self._workers.pool
        if self._inputs.datasets:
            weights = [dataset.weight for dataset in recipe.datasets]
            return DatasetGroups(pool, self._inputs.datasets, seed=recipe.seed, weights=weights)
        return sampled_groups(
            recipe, self._inputs.train_prompts, pool, self._checkpoints.ledger, on_discard=self._log.discard
        )

    async def _after_step(self, version: int) -> None:
        if self._seconds_to_first_step is None:
            self._seconds_to_first_step = time.perf_counter() - self._started
        await self._controls.after_step()
        for kind, fleet in self._workers.fleets.items():
            self._log.retries(kind, fleet.num_retries)
        await self._hear_all()
        if self._is_due(self._controls.recipe.trainer.evaluate_every, version):
            self._log.phase("evaluate")
            await self._heldout.on_the_way(version)
        self._is_checkpoint_due |= self._is_due(self._controls.recipe.trainer.checkpoint_every, version)
        if self._is_checkpoint_due and not self._may_have_to_go_back():
            await self._save_checkpoint(version)

    def _may_have_to_go_back(self) -> bool:
        """Whether the alarm may stop the run for what this step shows: its checkpoint would take the place of the
        one before it, and a run that goes on from there would be stopped again."""
        return self._log.is_in_doubt and self._controls.recipe.alarm.action == "stop"

    def _is_better_done_again(self, reached: int) -> bool:
        """Of a run that was told to stop: whether it had better go on from the checkpoint that there is."""
        was_stopped = reached < self._controls.num_steps
        return was_stopped and self._checkpoints.committed_step > 0 and self._may_have_to_go_back()

    def _is_due(self, every: int, version: int) -> bool:
        """What is done every so many steps; at the end it is done anyway."""
        return every > 0 and version % every == 0 and version < self._controls.recipe.trainer.steps

    async def _hear_all(self) -> None:
        """What every process says of itself now."""
        self._log.all_reported(await self._workers.reports() | {"driver": own_report()})

    async def _save_checkpoint(self, version: int) -> None:
        self._log.phase("save")
        started = time.perf_counter()
        await self._checkpoints.save(version, keep=self._controls.recipe.trainer.keep_checkpoints)
        self._learner_restarts = 0
        self._is_checkpoint_due = False
        self._hub.set("leash_checkpoint_seconds", time.perf_counter() - started)
        self._log.event("checkpoint", f"step {version} is committed", quiet=True)
