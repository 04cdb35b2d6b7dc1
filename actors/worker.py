"""What runs in the actors' processes: rollout workers, reference scorers and reward servers.

The driver's end of them is `actors/handles.py`.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.batching import DynamicBatcher
from actors.config import ReferenceConfig, RewardConfig, RewardModelReward, RolloutConfig
from actors.engine_loop import EngineLoop
from actors.weight_relay import brought_here
from core.config import ModelConfig
from core.errors import WorkerError
from core.hub import ModelSource, model_folder
from core.messages import Completion, Demonstration, SampleRequest
from core.remote import node_address, node_id
from core.threads import busy_threads
from core.versions import Versions, require_versions, versions
from core.weights import WeightManifest
from core.worker_report import WorkerReport, own_report

if TYPE_CHECKING:
    from actors.sampler import PullReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSetup:
    """What every actor needs to know of the model and of the driver."""

    model_source: ModelSource
    model: ModelConfig
    rollout: RolloutConfig
    adapter_rank: int | None = None
    """Of the adapters that a weight push brings; None: it brings all weights."""
    drain_s: float | None = None
    """Longest wait for running completions before new weights are loaded, the rest of which is sampled again; None
    if they go on under the new weights."""
    driver_versions: Versions = field(default_factory=versions)
    """Of the process that makes this, which is the driver."""


class RolloutWorker:
    """Samples completions with a vLLM engine of its own."""

    def __init__(self, setup: ActorSetup) -> None:
        self._setup = setup

    def ready(self) -> str:
        """Start the engine; Ray's id of the node that it is on. Not done earlier for the reason of `ScorerWorker`.

        Raises `UserError` on a node that runs other versions, lacks the GPU or cannot get the model, `WorkerError`
        if the engine does not start.
        """
        setup = self._setup
        require_versions(setup.driver_versions, {node_address(): versions()})
        # torch stays out of the driver, and vLLM out of every other process: importing it takes ten seconds.
        from core.device import device_of

        device_of("rollout", setup.rollout.resources)  # a CPU build of vLLM would take the GPUs' recipe, too
        model_path = model_folder(setup.model_source, node=node_address())
        from actors.sampler import Sampler  # heavy, see above

        try:
            self._sampler = Sampler(
                model_path,
                setup.model,
                setup.rollout,
                adapter_rank=setup.adapter_rank,
                keeps_running=setup.drain_s is None,
            )
        except Exception as error:  # vLLM's of any kind
            raise WorkerError(f"the engine did not start: {type(error).__name__}: {error}") from error
        self._drain_s = setup.drain_s or 0.0
        self._loop = EngineLoop(self._sampler, on_broken=_end_process)
        return node_id()

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Completion]:
        """Streams completions as they finish."""
        yield from self._loop.sample(requests)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stop sampling for who no longer listens."""
        self._loop.abort(request_ids)

    def ping(self) -> WorkerReport:
        """Returns after the engine step in progress."""
        self._loop.call(lambda: None)
        return self.report()

    def pull_weights(self, manifest: WeightManifest, weights: Any = None) -> "PullReport":
        """Take new weights between two engine steps and verify them. `weights`: their bytes, from another node."""
        if weights is None:
            return self._loop.drive(lambda: self._sampler.pull_weights(manifest), drain_s=self._drain_s)
        with brought_here(manifest, weights) as here:
            return self._loop.drive(lambda: self._sampler.pull_weights(here), drain_s=self._drain_s)

    def busy_threads(self) -> str:
        """What each thread does, asked when the others no longer answer."""
        return busy_threads()

    def report(self) -> WorkerReport:
        """Returns at once."""
        return self._sampler.stats.report()


FUNCTION_BATCH_TOKENS = 2**20
"""A Python function takes all that waits."""
LAST_WORDS_S = 2.0
"""For those who wait to hear why, before a process ends."""


class ScorerWorker:
    """Serves a reference scorer or a reward: what waits is scored in one batch."""

    def __init__(
        self,
        setup: ActorSetup,
        config: ReferenceConfig | RewardConfig,
        source: ModelSource | None,
    ) -> None:
        """`source`: of a reward model."""
        self._setup = setup
        self._config = config
        self._source = source

    async def ready(self) -> None:
        """Load the model. Not done while the process is made, because Ray would wrap a `UserError` of that.

        Raises `UserError` on a node that runs other versions, lacks the GPU or cannot get the model.
        """
        setup, config = self._setup, self._config
        require_versions(setup.driver_versions, {node_address(): versions()})
        if isinstance(config, ReferenceConfig):
            # torch stays out of the driver, which only needs this module's handles, and of functions' processes.
            from actors.decoding import decoding_of
            from actors.reference import ReferenceScorer
            from core.device import device_of

            device = device_of("reference", config.resources)
            model_path = model_folder(setup.model_source, node=node_address())
            self._scorer: Any = ReferenceScorer(
                model_path, setup.model, decoding=decoding_of(setup.rollout), device=device
            )
        else:
            self._scorer = self._load_reward(config)
        budget = getattr(config, "token_budget", FUNCTION_BATCH_TOKENS)
        self._batcher = DynamicBatcher(self._scorer.score, cost=lambda c: len(c.token_ids_T), budget=budget)

    def _load_reward(self, config: RewardConfig) -> Any:
        # Users' functions, which the driver does not load.
        from actors.rewards import load_reward

        model = self._setup.model
        if not isinstance(config, RewardModelReward):  # which reads no model
            return load_reward(config, None, Path(), model)
        assert self._source is not None, "reward models are found before processes start"
        path = model_folder(self._source, node=node_address())
        return load_reward(config, path, model_folder(self._setup.model_source, node=node_address()), model)

    async def score(self, completion: Completion | Demonstration) -> Any:
        try:
            return await self._batcher.submit(completion)
        finally:
            if getattr(self._scorer, "exhausted", False):
                _end_process()

    async def ping(self) -> WorkerReport:
        """Returns at once: the process lives."""
        return own_report()

    async def busy_threads(self) -> str:
        """What each thread does."""
        return busy_threads()

    async def report(self) -> WorkerReport:
        """What `ping` says."""
        return own_report()


def _end_process() -> None:
    """A worker whose engine broke, or whose reward function filled its memory, is of no use to anybody: Ray and the
    driver notice when its process ends."""
    threading.Timer(LAST_WORDS_S, os._exit, [1]).start()
