"""The rollout side alone: a saved policy's completions, scored, journaled and summed up. No learner is there.

The other half of the system is `orchestration/replay.py`. The policy does not change, so every step is sampled by
the same one; what comes out is in no optimizer step, and the ledger says so.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.rollout import RolloutPool
from actors.run_samples import rows_of
from core.errors import UserError
from core.messages import RolloutGroup
from core.models import check_same_tokenizer
from core.pretrained import check_model
from core.remote import node_id
from learner.saved_policy import SavedPolicy
from orchestration.assets import ASSET_PREFIX, resolve_model
from orchestration.cluster import launch
from orchestration.inputs import RunInputs
from orchestration.ledger.ledger import Ledger
from orchestration.loop.rollout_queue import RolloutQueue
from orchestration.loop.sources import GroupSource, sampled_groups
from orchestration.loop.step_record import rollout_figures, score_spread
from orchestration.recipe.config import Recipe
from orchestration.reporting.metrics_hub import MetricsHub
from orchestration.reporting.run_log import RunLog, write_samples
from orchestration.reporting.terminal import TerminalView
from orchestration.reward_functions import require_functions
from orchestration.run_folder import RunFolder, append_line, check_free, write_json
from orchestration.trackers.sink import TrackerSink

NOT_LEARNED = "sampled without a learner"
"""Why the ledger has discarded what was sampled, once it is over."""


def sample(
    recipe: Recipe, *, run_folder: Path | None, policy: str | None, address: str | None
) -> dict[str, Any]:
    """Sample the recipe's steps into a new run folder; the summary. `policy`: folder of a saved model to sample
    from, or an asset; left out, the recipe's. The reference is the recipe's model either way."""
    if recipe.datasets:
        raise UserError(
            f"{recipe.name}: it learns from datasets, so it samples nothing; leave [[datasets]] out"
        )
    # What is quick to check first: the inputs may include minutes of training a reward model.
    if run_folder is not None:
        check_free(run_folder)
    if launch.starts_own(address):
        require_functions(recipe)
    model_path = resolve_model(recipe.model.path, recipe.model.revision)
    policy_path = model_path if policy is None else _saved_policy(policy)
    check_model(policy_path, max_model_len=recipe.model.max_model_len)
    check_same_tokenizer(model_path, policy_path)
    inputs = RunInputs(recipe)
    folder = RunFolder.create(recipe, run_folder)
    view = TerminalView()
    view.start(f"{recipe.name}, rollouts alone", recipe.trainer.steps)
    view.note(f"run folder {folder.path}, policy {policy_path}")
    hub = MetricsHub(None)
    try:
        with launch.joined(address):
            log = RunLog(folder.path, hub, view, TrackerSink({}, note=view.note, samples_per_step=0))
            saved = SavedPolicy(policy_path, base=inputs.model_path, dtype=recipe.model.dtype, node=node_id())
            try:
                groups = asyncio.run(_sample(recipe, inputs, saved, folder, log, view))
            finally:
                saved.close()
    except UserError:
        folder.discard_if_untrained()
        raise
    finally:
        view.stop()
        hub.close()
    summary = reward_summary(groups)
    write_json(folder.path / "summary.json", summary)
    print("\n".join(summary_lines(summary)))
    return summary


def _saved_policy(policy: str) -> Path:
    """A folder even where its name could be one on the Hub, such as runs/model."""
    return resolve_model(policy if policy.startswith(ASSET_PREFIX) else os.path.abspath(policy))


def reward_summary(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """What the completions earned, and how far they are from the reference."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = {name: [rollout.rewards[name] for rollout in rollouts] for name in rollouts[0].rewards}
    figures = rewards | {
        "score": [rollout.score for rollout in rollouts],
        "kl_nats": [rollout.kl_nats for rollout in rollouts],
        "completion_tokens": [float(rollout.completion.num_completion_tokens) for rollout in rollouts],
    }
    return {
        "groups": len(groups),
        "rollouts": len(rollouts),
        "truncated_fraction": statistics.fmean(rollout.completion.truncated for rollout in rollouts),
        **score_spread(groups),
        "figures": {
            name: {
                "mean": statistics.fmean(values),
                "std": statistics.pstdev(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in figures.items()
        },
    }


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary as a table."""
    columns = ("mean", "std", "min", "max")
    width = max(map(len, summary["figures"]))
    spread = summary.get("zero_spread_fraction")
    return [
        f"{summary['rollouts']} completions of {summary['groups']} prompts; cut off at the longest: "
        f"{summary['truncated_fraction']:.0%}"
        + ("" if spread is None else f"; groups whose scores are all the same: {spread:.0%}"),
        f"{'':<{width}}" + "".join(f"{column:>11}" for column in columns),
        *(
            f"{name:<{width}}" + "".join(f"{figure[column]:>11.4g}" for column in columns)
            for name, figure in summary["figures"].items()
        ),
    ]


async def _sample(
    recipe: Recipe, inputs: RunInputs, saved: SavedPolicy, folder: RunFolder, log: RunLog, view: TerminalView
) -> list[RolloutGroup]:
    log.phase("start")
    async with launch.started_rollouts(recipe, inputs, log) as pool:
        log.ledger = ledger = Ledger.open(
            folder.path,
            committed_step=0,
            groups_per_step=recipe.trainer.prompts_per_step,
            journals_groups=True,
        )
        try:
            await _push(pool, recipe, inputs, saved)
            source = sampled_groups(recipe, inputs.train_prompts, pool, ledger, on_discard=log.discard)
            sampled: list[RolloutGroup] = []
            for step in range(1, recipe.trainer.steps + 1):
                log.phase("rollout")
                started = time.perf_counter()
                groups = await _step(source, recipe, step)
                ledger.sync()
                _record(folder.path, view, step, groups, time.perf_counter() - started)
                sampled += groups
            ledger.finish(NOT_LEARNED)
        finally:
            ledger.close()
    return sampled


async def _push(pool: RolloutPool, recipe: Recipe, inputs: RunInputs, saved: SavedPolicy) -> None:
    """Bring the saved weights to every rollout worker, verified; who joins later catches up."""
    probe = inputs.probe_token_ids(recipe.model.max_model_len)

    async def pack() -> Any:
        gap = recipe.max_probe_gap
        return await asyncio.to_thread(saved.pack, probe, max_probe_gap=gap), {}

    await pool.push_weights(pack)


async def _step(source: GroupSource, recipe: Recipe, step: int) -> list[RolloutGroup]:
    """The groups of one step, all at a time."""
    size = recipe.trainer.prompts_per_step
    queue = RolloutQueue(groups_per_step=size, max_lag=0)
    try:
        for number in range((step - 1) * size, step * size):
            await queue.start(number, lambda number=number: source.group(number))  # type: ignore[misc]
        groups = await queue.take_step(step, deadline_s=recipe.deadlines.rollout_s)
        return list(groups.values())
    finally:
        await queue.close()


def _record(
    folder: Path, view: TerminalView, step: int, groups: Sequence[RolloutGroup], rollout_s: float
) -> None:
    """The step's samples and figures, as a run that learns writes them."""
    write_samples(folder, [row for group in groups for row in rows_of(group)], step)
    figures = rollout_figures(groups, version=1)  # sampled by version 0, as for the first step
    record = {"step": step} | figures
    record |= dict.fromkeys(("rollout_s", "wait_batch_s", "sampling_s", "step_s"), rollout_s)
    record |= {"tokens_per_second_rollout": figures["sampled_tokens"] / rollout_s}
    append_line(folder / "metrics.jsonl", record)
    view.step(record)
