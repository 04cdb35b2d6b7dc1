"""A reward server without HTTP: who is let in, what is batched, and how long anybody waits."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.batching import DynamicBatcher
from actors.reward_service.messages import MAX_ITEMS, ScoreRequest, completion_of
from actors.reward_service.scoring_process import Outcome
from core.errors import RewardError, UserError
from core.messages import Completion


class QueueFull(RuntimeError):
    """Too much waits already; come back later."""


class Scorer(Protocol):
    """What scores: `ScoringProcess`."""

    vocab_size: int | None

    def score(self, completions: Sequence[Completion]) -> list[Outcome]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes on."""

    deadline_s: float = 60.0
    """From a request's arrival to its answer."""
    max_waiting: int = 4 * MAX_ITEMS
    """Completions that wait or are being scored."""
    batch_tokens: int = 2**20
    """Of one batch."""
    max_tokens: int | None = None
    """Longest prompt plus completion, where the reward goes by tokens."""


class RewardService:
    """One reward, shared by everybody who asks."""

    def __init__(self, name: str, scorer: Scorer, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self._scorer = scorer
        self._num_waiting = 0
        self._batcher = DynamicBatcher(
            scorer.score, cost=lambda completion: len(completion.token_ids_T), budget=limits.batch_tokens
        )

    @property
    def num_waiting(self) -> int:
        """Completions that wait or are being scored."""
        return self._num_waiting

    async def score(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """A score each. Raises `UserError` for tokens that the reward cannot take, `QueueFull`, `RewardError` if
        one has no score, `WorkerSilent` or `WorkerLost` if the reward hangs or dies."""
        for request in requests:
            self._check_tokens(request)
        if self._num_waiting + len(requests) > self.limits.max_waiting:
            raise QueueFull(
                f"{self._num_waiting} completions wait already; at most {self.limits.max_waiting} may"
            )
        self._num_waiting += len(requests)
        try:
            outcomes = await self._outcomes([completion_of(request) for request in requests])
        finally:
            self._num_waiting -= len(requests)
        failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if failures:
            raise RewardError(failures[0])
        return [float(outcome) for outcome in outcomes]

    async def _outcomes(self, completions: Sequence[Completion]) -> list[Outcome]:
        tasks = [asyncio.ensure_future(self._batcher.submit(completion)) for completion in completions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # of whoever left, or failed in an earlier batch
                task.cancel()

    def _check_tokens(self, request: ScoreRequest) -> None:
        vocab_size, max_tokens = self._scorer.vocab_size, self.limits.max_tokens
        if vocab_size is None:
            return
        ids = [*request.prompt_token_ids, *request.completion_token_ids]
        if not request.prompt_token_ids:
            raise UserError("prompt_token_ids: a reward model scores tokens; send those of the prompt")
        if max(ids) >= vocab_size:
            raise UserError(
                f"token id {max(ids)}: the reward model knows those below {vocab_size}; use its tokenizer"
            )
        if max_tokens is not None and len(ids) > max_tokens:
            raise UserError(
                f"{len(ids)} tokens: the server's recipe sets model.max_model_len to {max_tokens}"
            )
