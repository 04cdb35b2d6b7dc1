"""Stand-ins that several tests share: messages from a few numbers, workers without Ray, a clock without waiting."""

import asyncio
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from actors.config import FaultsConfig
from actors.fleet import Fleet
from actors.slot import Slot, WorkerState
from core.errors import WorkerError, WorkerLost
from core.messages import (
    Bools,
    Completion,
    Demonstration,
    Float32s,
    Int32s,
    Prompt,
    Rollout,
    RolloutGroup,
    SampleRequest,
    VersionSpan,
)
from core.weights import WeightManifest
from core.worker_report import WorkerReport

T = TypeVar("T")


def int32s(*values: int) -> Int32s:
    return np.array(values, dtype=np.int32)


def make_prompt(*token_ids: int, text: str = "a prompt", **columns: Any) -> Prompt:
    return Prompt(prompt_id=text, text=text, token_ids=int32s(*(token_ids or (1, 2))), columns=columns)


def make_completion(
    *sampled_ids: int,
    prompt: Prompt | None = None,
    request_id: str = "completion",
    versions: Sequence[int] = (0,),
    behavior: Sequence[float] | None = None,
    text: str = "a completion",
) -> Completion:
    """A completion whose tokens were sampled by `versions`, in equal parts."""
    prompt = prompt or make_prompt()
    before, count = len(prompt.token_ids), len(sampled_ids)
    logprobs = np.zeros(before + count, dtype=np.float32)
    logprobs[before:] = -1.0 if behavior is None else behavior
    edges = np.linspace(0, count, len(versions) + 1).astype(int)
    return Completion(
        request_id=request_id,
        prompt=prompt,
        token_ids_T=np.concatenate([prompt.token_ids, int32s(*sampled_ids)]),
        sampled_T=np.arange(before + count) >= before,
        behavior_logprobs_T=logprobs,
        version_spans=tuple(
            VersionSpan(policy_version=version, start=int(start), stop=int(stop))
            for version, start, stop in zip(versions, edges[:-1], edges[1:], strict=True)
        ),
        text=text,
        truncated=False,
    )


def make_rollout(
    completion: Completion, *, score: float = 0.0, reference: Sequence[float] | None = None
) -> Rollout:
    logprobs = np.zeros(len(completion.token_ids_T), dtype=np.float32)
    logprobs[completion.sampled_T] = -2.0 if reference is None else reference
    return Rollout(completion=completion, reference_logprobs_T=logprobs, rewards={"fake": score}, score=score)


def make_demonstration(
    *written_ids: int, prompt: Prompt | None = None, score: float = 0.0, text: str = "a text"
) -> Demonstration:
    prompt = prompt or make_prompt()
    token_ids_T = np.concatenate([prompt.token_ids, int32s(*written_ids)])
    sampled_T = np.arange(len(token_ids_T)) >= len(prompt.token_ids)
    return Demonstration(prompt=prompt, token_ids_T=token_ids_T, sampled_T=sampled_T, text=text, score=score)


def make_group(group_id: str, rollouts: Sequence[Rollout]) -> RolloutGroup:
    return RolloutGroup(group_id=group_id, rollouts=tuple(rollouts))


class FakeChatTokenizer:
    """A token a word, which is its length; `</s>` is the end-of-sequence token 0 and closes every message."""

    eos_token_id: int | None = 0
    eos_token: str | None = "</s>"
    bos_token: str | None = None

    def __call__(self, text: list[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0 if word == "</s>" else len(word) for word in one.split()] for one in text]}

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        assert not tokenize
        if not conversation:
            raise ValueError("Cannot apply chat template to an empty conversation.")  # as transformers does
        written = "".join(f" <{message['role']}> {message['content']} </s>" for message in conversation)
        return written + " <assistant>" * add_generation_prompt


@dataclass(frozen=True, slots=True)
class FakePullReport:
    """What a rollout worker reports of a weight pull."""

    load_s: float
    verify_s: float
    probe_gap: float
    redone_tokens: int = 0


class FakeWorker:
    """A worker process: up after `start_s`, until it is killed. What it has begun raises `WorkerLost` then."""

    def __init__(
        self, name: str = "worker-0", *, start_s: float = 0.0, fails: Exception | None = None
    ) -> None:
        self.name = name
        self.is_silent = False
        self.num_pings = 0
        self._start_s = start_s
        self._fails = fails
        self.is_killed = False
        self._working: set[asyncio.Future[None]] = set()

    async def ready(self, deadline_s: float) -> None:
        await self.work(self._start_s)
        if self._fails:
            raise self._fails

    async def ping(self, deadline_s: float) -> WorkerReport:
        self.num_pings += 1
        await self._answer_within(deadline_s, "a sign of life")
        return await self.report(deadline_s)

    async def report(self, deadline_s: float) -> WorkerReport:
        await self._answer_within(deadline_s, "a report")
        await self.work(0.0)
        return WorkerReport(
            gauges={"leash_worker_memory_bytes": 1000.0},
            totals={"leash_worker_cpu_seconds_total": float(self.num_pings)},
        )

    async def _answer_within(self, deadline_s: float, what: str) -> None:
        if self.is_silent:
            await asyncio.sleep(deadline_s)
            raise WorkerLost(f"{self.name} did not answer within {deadline_s:g} s ({what})")

    def kill(self) -> None:
        self.is_killed = True
        for work in self._working:
            if not work.done():
                work.set_result(None)

    async def work(self, seconds: float) -> None:
        """Takes so long, or until the process is killed."""
        work = asyncio.get_running_loop().create_future()
        self._working.add(work)
        try:
            if not self.is_killed:
                await asyncio.wait({work}, timeout=seconds)
            if self.is_killed:
                raise WorkerLost(f"{self.name} died")
        finally:
            self._working.remove(work)


def serving_fleet(*handles: Any) -> Fleet[Any]:
    """Workers that serve from the start, without supervisors: nothing but the test moves the clock."""
    left = list(handles)
    fleet: Fleet[Any] = Fleet("rollout", lambda name: left.pop(0), faults=FaultsConfig(), start_s=1e4)
    for handle in handles:
        fleet._slots[handle.name] = Slot(handle.name, handle, state=WorkerState.SERVING)
    return fleet


class FakeSampler(FakeWorker):
    """A rollout worker that samples the request's seed as its only token, after `delay_s` of the request."""

    def __init__(
        self,
        name: str = "rollout-0",
        *,
        delay_s: Callable[[SampleRequest], float] = lambda request: 0.0,
        version: int = 0,
    ) -> None:
        super().__init__(name)
        self.num_running = 0
        self.version = version
        self.requests: list[SampleRequest] = []
        self.pull_report = FakePullReport(load_s=0.0, verify_s=0.0, probe_gap=0.0)
        self._delay_s = delay_s

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        self.requests += requests
        self.num_running += len(requests)
        left = len(requests)
        tasks = [asyncio.ensure_future(self._sample_one(request)) for request in requests]
        try:
            for finished in asyncio.as_completed(tasks):
                completion = await finished
                left -= 1
                self.num_running -= 1
                yield completion
        finally:
            self.num_running -= left
            for task in tasks:
                task.cancel()

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> Any:
        await self.work(0.0)
        self.version = manifest.policy_version
        return self.pull_report

    async def _sample_one(self, request: SampleRequest) -> Completion:
        first = self.version
        await self.work(self._delay_s(request))
        versions = (first,) if self.version == first else (first, self.version)
        return make_completion(
            *[request.seed % 2**31] * len(versions),
            prompt=request.prompt,
            request_id=request.request_id,
            versions=versions,
        )


class FakeScorer:
    """A scorer that answers with a function of the completion, after `delay_s`."""

    def __init__(self, function: Callable[[Completion], Any], *, delay_s: float = 0.0) -> None:
        self._function = function
        self._delay_s = delay_s
        self.num_started = 0
        self.num_cancelled = 0

    async def score(self, completion: Any) -> Any:
        self.num_started += 1
        try:
            await asyncio.sleep(self._delay_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return self._function(completion)


class FakeLearner:
    """Counts its steps, and remembers what it trained on."""

    def __init__(self, version: int = 0, *, fails_at: int = -1) -> None:
        self.version = version
        self.trained_on: list[list[RolloutGroup]] = []
        self.lags: list[int] = []
        self._fails_at = fails_at

    async def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        if self.version == self._fails_at:
            raise WorkerError("learner-0 died")
        self.trained_on.append(list(groups))
        self.lags += [self.version - group.policy_version for group in groups]
        await asyncio.sleep(1.0)
        self.version += 1
        return {"policy_loss": float(self.version)}

    async def pack_weights(self) -> tuple[WeightManifest, dict[str, float]]:
        await asyncio.sleep(0.1)
        return make_manifest(self.version), {"pack_s": 0.1}


def flat_reference(completion: Completion) -> Float32s:
    """[T] log-probs of a reference that finds every sampled token likely by half."""
    mask: Bools = completion.sampled_T
    return np.where(mask, np.float32(np.log(0.5)), np.float32(0)).astype(np.float32)


def make_manifest(version: int) -> WeightManifest:
    return WeightManifest(
        policy_version=version,
        node="node",
        path="",
        num_bytes=0,
        tensors=(),
        adapters=None,
        probe_token_ids_T=int32s(),
        probe_logprobs_T=np.zeros(0, dtype=np.float32),
        max_probe_gap=1e-3,
    )


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on a loop whose clock jumps to the next timer, so that delays cost nothing and are exact.

    Raises `AssertionError` where a real loop would wait forever. No threads: nobody would wait for them.
    """
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(coroutine)


class _JumpingSelector(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self.now_s += max(timeout, 0.0)
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


def save_tiny_tokenizer(folder: Path, *words: str) -> None:
    """A tokenizer of whole words beside a model: 0 is `<unk>`, 1 is the end-of-sequence token `</s>`."""
    vocabulary = {word: index for index, word in enumerate(("<unk>", "</s>", *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
