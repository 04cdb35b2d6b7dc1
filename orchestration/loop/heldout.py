"""What the policy does on the held-out prompts: before training, on the way, and in the end."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from core.errors import UserError
from core.messages import Rollout
from orchestration.cluster.launch import Workers
from orchestration.inputs import RunInputs
from orchestration.loop.evaluation import (
    compare,
    evaluate,
    evaluate_best_of,
    load_samples,
    samples_of,
    save_samples,
    summarize,
    table_rows,
)
from orchestration.loop.selection import Selection
from orchestration.recipe.config import Recipe
from orchestration.run_folder import AFTER_FILE, BEFORE_FILE, PERPLEXITY_FILE, RunFolder, write_json

BEST_OF_FILE = "best-of-n.json"


class HeldOut:
    """The same prompts and seeds under each policy version that is asked for."""

    def __init__(
        self,
        recipe: Recipe,
        inputs: RunInputs,
        workers: Workers,
        folder: RunFolder,
        *,
        note: Callable[[str], None],
    ) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._workers = workers
        self._folder = folder.path
        self._selection = Selection(folder.path, saves_model=recipe.trainer.save_model)
        self._note = note

    def resume(self, version: int) -> None:
        """Forget the evaluations of later versions, and the best model if it is of one."""
        lost = self._selection.resume(version)
        if lost is not None:
            self._note(
                f"{self._selection.model} was of step {lost}, which the run no longer has, and is removed; the "
                "best of the evaluations from now on takes its place"
            )

    async def before(self, version: int) -> None:
        """Sample from the untrained policy; a resumed run has kept what it sampled."""
        file = self._folder / BEFORE_FILE
        if file.is_file():
            return
        if version > 0:
            raise UserError(f"{file}: missing, and version {version} is no longer the untrained policy")
        if (perplexity := await self._perplexity()) is not None:
            write_json(self._folder / PERPLEXITY_FILE, {"before": perplexity})
        save_samples(samples_of(await self._evaluate()), file)
        if self._recipe.trainer.best_of:
            # What choosing among samples of the untrained policy reaches: a bar for any training.
            best = await evaluate_best_of(
                self._workers.pool,
                self._inputs.heldout_prompts,
                count=self._recipe.trainer.best_of,
                seed=self._recipe.seed,
            )
            write_json(self._folder / BEST_OF_FILE, best)

    async def on_the_way(self, version: int) -> None:
        """Record how this version does, and keep it if it does better than every version before."""
        await self._select(version, await self._evaluate())

    async def after(self, version: int, *, select: bool) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
        """The comparison with the untrained policy: pairs of completions, and figures. `select`: this version may
        be the best, too."""
        before, after = load_samples(self._folder / BEFORE_FILE), await self._evaluate()
        if select:
            await self._select(version, after)
        save_samples(samples_of(after), self._folder / AFTER_FILE)
        comparison = await compare(self._workers.pool, before, after, self._inputs.decode)
        figures = summarize(comparison) | {"heldout_perplexity": await self._perplexities()}
        if self._selection.best:
            figures["best_evaluation"] = self._selection.best
        best_of = self._folder / BEST_OF_FILE
        if best_of.is_file():
            figures["best_of_n"] = json.loads(best_of.read_text(encoding="utf-8"))
        return table_rows(comparison), figures

    async def _evaluate(self) -> list[Rollout]:
        return await evaluate(self._workers.pool, self._inputs.heldout_prompts, seed=self._recipe.seed)

    async def _select(self, version: int, rollouts: list[Rollout]) -> None:
        if self._selection.add(version, rollouts) and self._recipe.trainer.save_model:
            await self._workers.learner.save_model(self._selection.model.absolute())
            self._selection.saved()

    async def _perplexities(self) -> dict[str, float | None] | None:
        """Of human-written texts that nothing was learned from; None if there are none."""
        after = await self._perplexity()
        if after is None:
            return None
        file = self._folder / PERPLEXITY_FILE
        # Older versions of Leash did not keep it.
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"before": None}
        return before | {"after": after}

    async def _perplexity(self) -> float | None:
        """Of the present policy, by the learner before and after: the same measure, and the same rounding."""
        texts = self._inputs.heldout_texts
        return None if texts is None else math.exp(await self._workers.learner.mean_nll(texts.demonstrations))
