"""One run from recipe to summary: workers up, evaluate, train, evaluate again, report.

The loop itself is `orchestration/trainer.py`.
"""

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

from core.errors import LearnerLost, UserError
from core.messages import Rollout
from core.remote import own_memory_bytes
from core.stream import SeededStream
from orchestration import cluster
from orchestration.config import Recipe
from orchestration.evaluation import (
    Sample,
    compare,
    evaluate,
    evaluate_best_of,
    load_samples,
    samples_of,
    save_samples,
    summarize,
    table_rows,
)
from orchestration.inputs import RunInputs
from orchestration.interrupts import Interrupts
from orchestration.metrics_hub import MetricsHub
from orchestration.run_folder import RunFolder, write_atomically, write_json
from orchestration.run_log import RunLog
from orchestration.selection import Selection
from orchestration.sources import DatasetGroups, GroupSource, SampledGroups
from orchestration.summary import run_figures
from orchestration.terminal import TerminalView, before_after_markdown, before_after_table
from orchestration.trainer import Trainer

BEST_OF_FILE = "best-of-n.json"


def train(recipe: Recipe, *, run_folder: Path | None, resume: bool, address: str | None) -> dict[str, Any]:
    """Run the recipe to its end, or until told to stop; the summary. Ctrl-C and SIGTERM save and exit."""
    started = time.perf_counter()
    inputs = RunInputs(recipe)
    if resume:
        assert run_folder is not None, "the command line asks for the folder"
        folder = RunFolder.reopen(recipe, run_folder)
    else:
        folder = RunFolder.create(recipe, run_folder)
    view = TerminalView()
    view.start(recipe.name, recipe.trainer.steps)
    hub = MetricsHub(recipe.metrics.port)
    write_atomically(folder.path / "metrics-url.txt", f"{hub.url}\n")
    view.note(f"run folder {folder.path}, metrics at {hub.url}")
    try:
        with cluster.joined(address):
            return asyncio.run(Run(recipe, inputs, folder, hub, view, started).execute())
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
        started: float,
    ) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._folder = folder
        self._view = view
        self._log = RunLog(folder.path, hub, view)
        self._hub = hub
        self._started = started
        self._seconds_to_first_step: float | None = None
        self._memory: dict[str, int] = {}
        self._learner_restarts = 0
        """Since the last checkpoint: a learner that dies before the next one every time is not worth more."""
        self._selection = Selection(folder.path)
        self._interrupts = Interrupts(lambda: self._stop())
        self._stop = self._interrupts.cancel

    async def execute(self) -> dict[str, Any]:
        """Start the workers, train, compare, and write the summary."""
        with self._interrupts:
            return await self._execute()

    async def _execute(self) -> dict[str, Any]:
        self._view.phase("start")
        async with cluster.started(self._recipe, self._inputs, self._log.worker_event) as self._workers:
            return await self._train_and_compare(self._make_trainer())

    async def _train_and_compare(self, trainer: Trainer) -> dict[str, Any]:
        start = await self._load_checkpoint()
        await trainer.push_weights()
        before = await self._evaluate_before(start)
        await self._train(trainer, start)
        return await self._finish(before)

    async def _train(self, trainer: Trainer, start: int) -> None:
        """To the last step, or to the step in which a signal asked to stop; saved in both cases."""
        steps = self._recipe.trainer.steps
        self._stop = trainer.stop
        while True:
            try:
                reached = await trainer.train(start=start, stop=steps, after_step=self._after_step)
                if reached > start:
                    await self._save_checkpoint(reached)
                break
            except LearnerLost as error:
                start = await self._restart_learner(trainer, error)
        if reached < steps:
            self._view.note(f"stopped after step {reached}; go on with --run {self._folder.path} --resume")
            raise KeyboardInterrupt
        self._stop = self._interrupts.cancel

    async def _finish(self, before: list[Sample]) -> dict[str, Any]:
        """Evaluate again, compare, and write what people and scripts read."""
        self._view.phase("evaluate")
        after = await self._evaluate()
        if self._recipe.trainer.evaluate_every:
            await self._select(self._recipe.trainer.steps, after)
        save_samples(samples_of(after), self._folder.path / "heldout-after.jsonl")
        comparison = await compare(self._workers.pool, before, after, self._inputs.decode)
        await self._measure_memory()
        self._view.phase("save")
        if self._recipe.trainer.save_model:
            await self._workers.learner.save_model((self._folder.path / "model").absolute())
        summary = summarize(comparison) | {"heldout_perplexity": await self._perplexity()}
        if self._selection.best:
            summary["best_evaluation"] = self._selection.best
        best_of = self._folder.path / BEST_OF_FILE
        if best_of.is_file():
            summary["best_of_n"] = json.loads(best_of.read_text(encoding="utf-8"))
        summary |= run_figures(
            self._recipe,
            self._log.records,
            memory=self._memory,
            reward_model=self._inputs.reward_model_metrics,
            seconds_for_reward_model=self._inputs.seconds_for_reward_model,
            seconds_to_first_step=self._seconds_to_first_step,
            seconds_total=time.perf_counter() - self._started,
        )
        write_json(self._folder.path / "summary.json", summary)
        rows = table_rows(comparison)
        write_atomically(self._folder.path / "before-after.md", before_after_markdown(rows, summary))
        self._view.stop()
        before_after_table(rows, summary)
        return summary

    async def _perplexity(self) -> dict[str, float] | None:
        """Of human-written texts that nothing was learned from; None if the prompts have none. The reference
        is the untrained policy."""
        texts = self._inputs.heldout_texts
        if texts is None:
            return None
        reference = await self._workers.pool.score_demonstrations(texts)
        return {
            "before": math.exp(reference.reference_nll),
            "after": math.exp(await self._workers.learner.mean_nll(texts.demonstrations)),
        }

    def _make_trainer(self) -> Trainer:
        recipe = self._recipe
        return Trainer(
            pool=self._workers.pool,
            learner=self._workers.learner,
            source=self._make_source(),
            observer=self._log,
            prompts_per_step=recipe.trainer.prompts_per_step,
            max_lag=recipe.trainer.max_lag,
            deadlines=recipe.deadlines,
            evaluate_every=recipe.trainer.evaluate_every,
        )

    def _make_source(self) -> GroupSource:
        recipe, pool = self._recipe, self._workers.pool
        if self._inputs.datasets:
            weights = [dataset.weight for dataset in recipe.datasets]
            return DatasetGroups(pool, self._inputs.datasets, seed=recipe.seed, weights=weights)
        return SampledGroups(
            pool,
            SeededStream([self._inputs.train_prompts], seed=recipe.seed),
            group_size=recipe.rollout.group_size,
            max_resamples=recipe.rollout.max_resamples,
            seed=recipe.seed,
            replace_lost=recipe.faults.on_lost_group == "drop",
            on_discard=self._log.discard,
        )

    async def _restart_learner(self, trainer: Trainer, error: LearnerLost) -> int:
        """After the death of a rank: all ranks anew, at the last checkpoint; its version."""
        self._learner_restarts += 1
        if self._learner_restarts > self._recipe.faults.max_restarts:
            raise error
        self._log.worker_event("learner", f"died: {error}")
        self._view.phase("start")
        await self._workers.learner.restart()
        version = await self._load_checkpoint()
        await trainer.push_weights()
        return version

    async def _load_checkpoint(self) -> int:
        checkpoint = self._folder.latest_checkpoint()
        if checkpoint is None:
            self._log.records = self._folder.cut_records_after(0)
            return 0
        version = await self._workers.learner.load(checkpoint.absolute())
        self._log.records = self._folder.cut_records_after(version)
        self._selection.resume(version)
        self._view.note(f"resumed from {checkpoint}")
        return version

    async def _evaluate_before(self, start: int) -> list[Sample]:
        """Held-out completions of the untrained policy; a resumed run has kept them."""
        file = self._folder.path / "heldout-before.jsonl"
        if not file.is_file():
            if start > 0:
                raise UserError(f"{file}: missing, and version {start} is no longer the untrained policy")
            self._view.phase("evaluate")
            before = await self._evaluate()
            save_samples(samples_of(before), file)
            if self._recipe.trainer.best_of:
                await self._evaluate_best_of(self._recipe.trainer.best_of)
        return load_samples(file)

    async def _evaluate_best_of(self, count: int) -> None:
        """What choosing among samples of the untrained policy reaches: a bar for any training."""
        best = await evaluate_best_of(
            self._workers.pool, self._inputs.heldout_prompts, count=count, seed=self._recipe.seed
        )
        write_json(self._folder.path / BEST_OF_FILE, best)

    async def _after_step(self, version: int) -> None:
        if self._seconds_to_first_step is None:
            self._seconds_to_first_step = time.perf_counter() - self._started
        await self._measure_memory()
        if self._is_due(self._recipe.trainer.evaluate_every, version):
            self._view.phase("evaluate")
            await self._select(version, await self._evaluate())
        if self._is_due(self._recipe.trainer.checkpoint_every, version):
            await self._save_checkpoint(version)

    def _is_due(self, every: int, version: int) -> bool:
        """What is done every so many steps; at the end it is done anyway."""
        return every > 0 and version % every == 0 and version < self._recipe.trainer.steps

    async def _evaluate(self) -> list[Rollout]:
        return await evaluate(self._workers.pool, self._inputs.heldout_prompts, seed=self._recipe.seed)

    async def _select(self, version: int, rollouts: list[Rollout]) -> None:
        """Keep the policy if it does better on the held-out prompts than every version before."""
        if self._selection.add(version, rollouts) and self._recipe.trainer.save_model:
            await self._workers.learner.save_model((self._folder.path / "model-best").absolute())

    async def _measure_memory(self) -> None:
        """Memory of every process now, and the largest so far."""
        sizes = await self._workers.memory_bytes()
        sizes["driver"] = own_memory_bytes()
        self._log.memory(sizes)
        sizes["total"] = sum(sizes.values())
        self._memory = {name: max(size, self._memory.get(name, 0)) for name, size in sizes.items()}

    async def _save_checkpoint(self, version: int) -> None:
        self._view.phase("save")
        started = time.perf_counter()
        unfinished = self._folder.begin_checkpoint(version).absolute()
        await self._workers.learner.save(unfinished)
        self._folder.commit_checkpoint(unfinished)
        self._learner_restarts = 0
        self._hub.set("leash_checkpoint_seconds", time.perf_counter() - started)
