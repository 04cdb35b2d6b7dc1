"""The reference without a model of its own: the learner's frozen base, its adapters switched off.

Same interface as a pool of reference scorers. The learner answers between its steps, so in asynchronous training
(`max_lag` above 0) scores wait for the step in progress.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from core.messages import Completion, Demonstration, Float32s
from learner.group import LearnerGroup

Text = Completion | Demonstration


class AdapterReference:
    """Collects what is to be scored while the learner is busy, and hands it over at once."""

    def __init__(self, learner: LearnerGroup) -> None:
        self._learner = learner
        self._waiting: list[tuple[Text, asyncio.Future[Float32s]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def score(self, completion: Text) -> Any:
        """[T] float32, nats: 0 where the token was not sampled."""
        future: asyncio.Future[Float32s] = asyncio.get_running_loop().create_future()
        self._waiting.append((completion, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await self._learner.reference_logprobs([text for text, _ in batch])
            except Exception as error:  # every caller hears why; who waits next tries again
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            _hand_out(batch, results)


def _hand_out(batch: Sequence[tuple[Text, asyncio.Future[Float32s]]], results: Sequence[Float32s]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if not future.done():  # a caller may have been cancelled
            future.set_result(result)
