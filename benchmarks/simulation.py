"""The driver with many rollout workers: completions a second, its own CPU, and the lag, with no model anywhere.

    python -m benchmarks.simulation [--workers 16 64 256] [--seconds 60]
    python -m benchmarks.simulation --orders [--seconds 60]

The loop, the queue, the fleet, the rollout pool and the ledger (with its fsyncs) are the real ones. Workers and
scorers are stand-ins that wait as an accelerator would: a completion takes 2 s in the median, log-normal with a
sigma of 0.5, and the slowest of a thousand 10 s. The learner takes no time. Half as many completions again
are in flight as the workers can decode at a time. The first third of the time is not counted.

`--orders` compares the orders in which groups are trained on, with 4 workers and a tenth of these times, where one
completion in 400 takes 20 times as long: about 2% of the groups.
"""

import argparse
import asyncio
import math
import os
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from actors.config import FaultsConfig
from actors.fleet import Fleet
from actors.rollout import RolloutPool, WeightedReward
from core.messages import Completion, Prompt, RolloutGroup, SampleRequest, VersionSpan
from core.stream import SeededStream
from core.weights import WeightManifest
from core.worker_report import WorkerReport
from orchestration.ledger.ledger import Ledger
from orchestration.loop.sources import JournaledGroups, SampledGroups
from orchestration.loop.trainer import Trainer
from orchestration.recipe.config import DeadlinesConfig

SEQUENCES = 16
"""That a worker decodes at a time."""
GROUP_SIZE = 8
NEW_TOKENS = 256
MEDIAN_S = 2.0
SIGMA = 0.5
MAX_LAG = 2
SLOW_FRACTION = 1 / 400
SLOW_TIMES = 20.0
ORDERS = ((2, 0), (2, 4), (2, 10**6), (4, 0), (4, 4), (4, 10**6), (8, 0), (8, 10**6))
"""`max_lag`, and how many groups may be overtaken: none is start order, a million completion order."""


class SimulatedWorker:
    """Samples with delays, `SEQUENCES` at a time."""

    def __init__(self, name: str, *, median_s: float = MEDIAN_S, slow_fraction: float = 0.0) -> None:
        self.name = name
        self._median_s = median_s
        self._slow_fraction = slow_fraction
        self.version = -1
        self._chance = random.Random(name)
        self._slots = asyncio.Semaphore(SEQUENCES)

    async def ready(self, deadline_s: float) -> None: ...

    async def ping(self, deadline_s: float) -> WorkerReport:
        return await self.report(deadline_s)

    async def report(self, deadline_s: float) -> WorkerReport:
        return WorkerReport(gauges={}, totals={})

    def kill(self) -> None: ...

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> "SimulatedWorker":
        self.version = manifest.policy_version
        return self

    load_s = verify_s = probe_gap = 0.0
    redone_tokens = 0

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        for done in asyncio.as_completed([self._sample(request) for request in requests]):
            yield await done

    async def _sample(self, request: SampleRequest) -> Completion:
        async with self._slots:
            first = self.version
            is_slow = self._chance.random() < self._slow_fraction
            duration_s = self._median_s * math.exp(self._chance.gauss(0.0, SIGMA))
            await asyncio.sleep(duration_s * (SLOW_TIMES if is_slow else 1.0))
            num_prompt = len(request.prompt.token_ids)
            token_ids_T = np.arange(num_prompt + NEW_TOKENS, dtype=np.int32)
            return Completion(
                request_id=request.request_id,
                prompt=request.prompt,
                token_ids_T=token_ids_T,
                sampled_T=token_ids_T >= num_prompt,
                behavior_logprobs_T=np.zeros(len(token_ids_T), dtype=np.float32),
                version_spans=(VersionSpan(policy_version=first, start=0, stop=NEW_TOKENS),),
                text="x" * NEW_TOKENS * 4,
                truncated=False,
            )


class SimulatedScorer:
    def __init__(self, result: Any) -> None:
        self._result = result

    async def score(self, completion: Any) -> Any:
        await asyncio.sleep(0.05)
        return self._result


class SimulatedLearner:
    """Takes no time: what is measured is whether the driver keeps up with the workers."""

    def __init__(self) -> None:
        self.version = 0
        self.num_completions = 0
        self.lags: list[int] = []
        """Of every group."""

    async def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        self.lags += [self.version - group.policy_version for group in groups]
        self.version += 1
        self.num_completions += sum(len(group.rollouts) for group in groups)
        return {}

    async def pack_weights(self) -> tuple[WeightManifest, dict[str, float]]:
        nothing = np.zeros(0, dtype=np.float32)
        return (
            WeightManifest(
                policy_version=self.version,
                node="node",
                path="",
                num_bytes=0,
                tensors=(),
                adapters=None,
                probe_token_ids_T=nothing.astype(np.int32),
                probe_logprobs_T=nothing,
                max_probe_gap=1.0,
            ),
            {},
        )


class Unobserved:
    def phase(self, name: str) -> None: ...

    async def step(self, *figures: Any) -> None: ...


async def simulate(
    num_workers: int,
    seconds: float,
    folder: Path,
    *,
    max_lag: int = MAX_LAG,
    max_overtaken: int = 0,
    worker: Callable[[str], SimulatedWorker] = SimulatedWorker,
) -> dict[str, float]:
    """Figures of a run of so many workers for about so long."""
    fleet: Fleet[Any] = Fleet("rollout", worker, faults=FaultsConfig(), start_s=60)
    reference = SimulatedScorer(np.zeros(16 + NEW_TOKENS, dtype=np.float32))
    pool = RolloutPool(fleet, reference, {"one": WeightedReward(server=SimulatedScorer(1.0), weight=1.0)})
    learner = SimulatedLearner()
    groups_per_step = max(1, num_workers * SEQUENCES // GROUP_SIZE // 2)
    ledger = Ledger.open(folder, committed_step=0, groups_per_step=groups_per_step, journals_groups=True)
    prompts = [
        Prompt(prompt_id=str(i), text="prompt", token_ids=np.arange(16, dtype=np.int32)) for i in range(997)
    ]
    source = SampledGroups(
        pool,
        SeededStream([prompts], seed=0),
        group_size=GROUP_SIZE,
        max_resamples=0,
        seed=0,
        on_discard=lambda *discard: None,
    )
    trainer = Trainer(
        pool=pool,
        learner=learner,
        source=JournaledGroups(source, ledger),
        observer=Unobserved(),
        ledger=ledger,
        prompts_per_step=groups_per_step,
        max_lag=max_lag,
        max_overtaken=max_overtaken,
        deadlines=DeadlinesConfig(),
    )
    await fleet.start(num_workers)
    await trainer.push_weights()
    loop = asyncio.get_running_loop()
    marks: list[tuple[float, float, int]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time(), learner.num_completions))

    loop.call_later(seconds / 3, mark)
    loop.call_later(seconds, mark)
    loop.call_later(seconds, trainer.stop)

    async def nothing(version: int) -> None: ...

    await trainer.train(start=0, stop=10**9, after_step=nothing)
    await fleet.close()
    ledger.close()
    wall, used, count = (end - start for start, end in zip(*marks, strict=True))
    lags = {"lag": max(learner.lags), "mean_lag": fmean(learner.lags)}
    return {"per_s": count / wall, "cpu": used / wall, "ms": 1000 * used / count} | lags


def compare_orders(seconds: float) -> None:
    """A table of `ORDERS`."""
    print("| max_lag | groups that may be overtaken | completions/s | mean lag | largest lag |")
    print("| --- | --- | --- | --- | --- |")
    for max_lag, max_overtaken in ORDERS:
        with tempfile.TemporaryDirectory() as folder:
            run = simulate(
                *(4, seconds, Path(folder)),
                max_lag=max_lag,
                max_overtaken=max_overtaken,
                worker=partial(SimulatedWorker, median_s=MEDIAN_S / 10, slow_fraction=SLOW_FRACTION),
            )
            figures = asyncio.run(run)
        name = {0: "none", 10**6: "all"}.get(max_overtaken, str(max_overtaken))
        print(
            f"| {max_lag} | {name} | {figures['per_s']:.0f} | {figures['mean_lag']:.2f} | {figures['lag']} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--orders", action="store_true")
    args = parser.parse_args()
    if args.orders:
        compare_orders(args.seconds)
        return
    mean_s = MEDIAN_S * math.exp(SIGMA**2 / 2)
    print(f"{os.cpu_count()} cores; {NEW_TOKENS} tokens in {mean_s:.2f} s in the mean; max_lag {MAX_LAG}\n")
    print("| workers | completions/s | of the workers' limit | driver, cores | CPU ms each | largest lag |")
    print("| --- | --- | --- | --- | --- | --- |")
    for num_workers in args.workers:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(simulate(num_workers, args.seconds, Path(folder)))
        limit = num_workers * SEQUENCES / mean_s
        print(
            f"| {num_workers} | {figures['per_s']:.0f} | {figures['per_s'] / limit:.2f} | {figures['cpu']:.2f} "
            f"| {figures['ms']:.2f} | {figures['lag']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
