"""One run from recipe to summary: workers up, evaluate, train, evaluate again, report.

The loop itself is `orchestration/trainer.py`.
"""

import asyncio
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.config import MovieReviewPrompts, RewardModelReward
from actors.prompts import PromptStream, load_prompts
from core.errors import UserError
from core.messages import Int32s
from orchestration import cluster
from orchestration.assets import RATINGS, asset_path, cache_folder, resolve_model
from orchestration.config import Recipe
from orchestration.evaluation import (
    compare,
    evaluate,
    load_samples,
    samples_of,
    save_samples,
    summarize,
    table_rows,
)
from orchestration.metrics_hub import MetricsHub
from orchestration.run_folder import RunFolder, write_atomically
from orchestration.run_log import RunLog
from orchestration.summary import run_figures
from orchestration.terminal import TerminalView, before_after_markdown, before_after_table
from orchestration.trainer import Trainer

PROBE_TOKENS = 64
"""Length of the sequence on which engine and learner are compared after every push."""


def train_reward_model(recipe: Recipe) -> Path:
    """The folder of the recipe's reward model, trained if the cache does not have it. Prints its figures."""
    assert recipe.reward_model is not None
    model_path = resolve_model(recipe.model.path)
    key = json.dumps([recipe.reward_model.model_dump(), str(model_path), recipe.seed], sort_keys=True)
    folder = (
        cache_folder() / "reward-models" / f"{recipe.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    )
    if not (folder / "metrics.json").is_file():
        # torch's training side; a run whose reward model is cached does not need it here.
        from learner.reward_stage import train_reward_model as train_into

        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        train_into(
            recipe.reward_model,
            model_path=model_path,
            data_folder=asset_path(RATINGS.name),
            folder=unfinished,
            seed=recipe.seed,
            report=lambda text: print(text, flush=True),
        )
        unfinished.rename(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    accuracies = ", ".join(f"{metrics[f'pairwise_accuracy_{m}']:.3f} at {m}" for m in (0, 1, 2))
    print(
        f"reward model: held-out pairwise accuracy {accuracies} or more apart in mean rating; "
        f"trained in {metrics['seconds']:.0f} s ({folder})",
        flush=True,
    )
    return folder


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
    finally:
        view.stop()
        hub.close()


class RunInputs:
    """Everything that is read from disk before the first process starts, so that bad input costs nothing."""

    def __init__(self, recipe: Recipe) -> None:
        self.model_path = resolve_model(recipe.model.path)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.model_path)
        self.train_prompts, self.heldout_prompts = load_prompts(
            recipe.prompts,
            self.tokenizer,
            data_folder=asset_path(RATINGS.name) if isinstance(recipe.prompts, MovieReviewPrompts) else None,
            num_heldout=recipe.trainer.heldout_prompts,
            max_prompt_tokens=recipe.model.max_model_len - recipe.rollout.max_new_tokens,
        )
        self.reward_paths: dict[str, Path] = {}
        self.reward_model_metrics: dict[str, Any] = {}
        for reward in recipe.rewards:
            if isinstance(reward, RewardModelReward):
                path = resolve_model(reward.path) if reward.path else train_reward_model(recipe)
                self.reward_paths[f"reward-{reward.name}"] = path
                if (path / "metrics.json").is_file():
                    self.reward_model_metrics = json.loads(
                        (path / "metrics.json").read_text(encoding="utf-8")
                    )

    def decode(self, token_ids: list[int]) -> str:
        """Text of completion tokens, special ones left out."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def probe_token_ids(self, max_model_len: int) -> Int32s:
        """Held-out text, end to end: what engine and learner must score alike."""
        ids = np.concatenate([prompt.token_ids for prompt in self.heldout_prompts])
        probe: Int32s = ids[: min(PROBE_TOKENS, max_model_len - 1)]
        return probe


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

    async def execute(self) -> dict[str, Any]:
        """Start the workers, train, compare, and write the summary."""
        self._view.phase("start")
        async with cluster.started(
            self._recipe,
            model_path=self._inputs.model_path,
            reward_paths=self._inputs.reward_paths,
            probe_token_ids_T=self._inputs.probe_token_ids(self._recipe.model.max_model_len),
        ) as self._workers:
            trainer = self._make_trainer()
            task = asyncio.current_task()
            assert task is not None
            with _signals(trainer.stop, task.cancel):
                return await self._train_and_compare(trainer)

    async def _train_and_compare(self, trainer: Trainer) -> dict[str, Any]:
        steps = self._recipe.trainer.steps
        start = await self._load_checkpoint()
        await trainer.push_weights()
        before = await self._evaluate_before(start)
        reached = await trainer.train(start=start, stop=steps, after_step=self._after_step)
        if reached < steps:
            await self._save_checkpoint(reached)
            self._view.note(f"stopped after step {reached}; go on with --run {self._folder.path} --resume")
            raise KeyboardInterrupt
        self._view.phase("evaluate")
        after = await evaluate(self._workers.pool, self._inputs.heldout_prompts, seed=self._recipe.seed)
        save_samples(samples_of(after), self._folder.path / "heldout-after.jsonl")
        comparison = await compare(self._workers.pool, before, after, self._inputs.decode)
        memory = await self._workers.memory_bytes()
        self._view.phase("save")
        if self._recipe.trainer.save_model:
            await self._workers.learner.save_model((self._folder.path / "model").absolute())
        await self._save_checkpoint(reached)
        summary = summarize(comparison) | run_figures(
            self._recipe,
            self._log.records,
            memory=memory,
            reward_model=self._inputs.reward_model_metrics,
            seconds_to_first_step=self._seconds_to_first_step,
            seconds_total=time.perf_counter() - self._started,
        )
        write_atomically(self._folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        rows = table_rows(comparison)
        write_atomically(self._folder.path / "before-after.md", before_after_markdown(rows, summary))
        self._view.stop()
        before_after_table(rows, summary)
        return summary

    def _make_trainer(self) -> Trainer:
        recipe = self._recipe
        return Trainer(
            pool=self._workers.pool,
            learner=self._workers.learner,
            prompts=PromptStream(self._inputs.train_prompts, seed=recipe.seed),
            observer=self._log,
            prompts_per_step=recipe.trainer.prompts_per_step,
            group_size=recipe.rollout.group_size,
            max_lag=recipe.trainer.max_lag,
            seed=recipe.seed,
            deadlines=recipe.deadlines,
        )

    async def _load_checkpoint(self) -> int:
        checkpoint = self._folder.latest_checkpoint()
        if checkpoint is None:
            return 0
        version = await self._workers.learner.load(checkpoint.absolute())
        self._log.records = self._folder.cut_records_after(version)
        self._view.note(f"resumed from {checkpoint}")
        return version

    async def _evaluate_before(self, start: int) -> Any:
        """Held-out completions of the untrained policy; a resumed run has kept them."""
        file = self._folder.path / "heldout-before.jsonl"
        if not file.is_file():
            if start > 0:
                raise UserError(f"{file}: missing, and version {start} is no longer the untrained policy")
            self._view.phase("evaluate")
            before = await evaluate(self._workers.pool, self._inputs.heldout_prompts, seed=self._recipe.seed)
            save_samples(samples_of(before), file)
        return load_samples(file)

    async def _after_step(self, version: int) -> None:
        if self._seconds_to_first_step is None:
            self._seconds_to_first_step = time.perf_counter() - self._started
            self._log.memory(await self._workers.memory_bytes())
        every = self._recipe.trainer.checkpoint_every
        if every and version % every == 0 and version < self._recipe.trainer.steps:
            await self._save_checkpoint(version)

    async def _save_checkpoint(self, version: int) -> None:
        self._view.phase("save")
        started = time.perf_counter()
        unfinished = self._folder.begin_checkpoint(version).absolute()
        await self._workers.learner.save(unfinished)
        self._folder.commit_checkpoint(unfinished)
        self._hub.set("leash_checkpoint_seconds", time.perf_counter() - started)


class _signals:
    """Ctrl-C and SIGTERM end the run after the step in progress; a second one ends it at once."""

    def __init__(self, stop: Callable[[], None], cancel: Callable[[], Any]) -> None:
        self._stop = stop
        self._cancel = cancel
        self._asked = False

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _handle(self) -> None:
        if self._asked:
            self._cancel()
        self._asked = True
        self._stop()
