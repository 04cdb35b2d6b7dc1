"""The learner as reference: what waits while it scores goes to it together, and an error reaches who asked."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from core.errors import WorkerError
from core.messages import Completion, Float32s
from learner.group import LearnerGroup
from orchestration.cluster.adapter_reference import AdapterReference
from tests.fakes import make_completion, run_virtually


class FakeLearnerGroup:
    """Scores a text with its last token, in one second, whatever their number."""

    def __init__(self, *, fails_on: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self._fails_on = fails_on

    async def reference_logprobs(self, texts: Sequence[Completion]) -> list[Float32s]:
        last = [int(text.token_ids_T[-1]) for text in texts]
        self.calls.append(last)
        await asyncio.sleep(1.0)
        if self._fails_on in last:
            raise WorkerError("learner rank 0 died")
        return [np.full(1, value, dtype=np.float32) for value in last]


def reference_of(learner: FakeLearnerGroup) -> AdapterReference:
    return AdapterReference(cast(LearnerGroup, learner))


def test_what_waits_while_the_learner_scores_goes_to_it_together() -> None:
    learner = FakeLearnerGroup()
    reference = reference_of(learner)

    async def ask(value: int, after_s: float) -> Any:
        await asyncio.sleep(after_s)
        return await reference.score(make_completion(value))

    async def ask_all() -> list[Any]:
        return list(await asyncio.gather(ask(1, 0), ask(2, 0.3), ask(3, 0.6), ask(4, 5)))

    assert [float(answer[0]) for answer in run_virtually(ask_all())] == [1, 2, 3, 4]
    assert learner.calls == [[1], [2, 3], [4]]


def test_an_error_reaches_all_who_waited_for_it_and_nobody_else() -> None:
    reference = reference_of(FakeLearnerGroup(fails_on=2))

    async def ask_all() -> list[Any]:
        asked = [asyncio.create_task(reference.score(make_completion(1)))]
        await asyncio.sleep(0.5)
        asked += [asyncio.create_task(reference.score(make_completion(value))) for value in (2, 3)]
        await asyncio.sleep(1.0)
        asked.append(asyncio.create_task(reference.score(make_completion(4))))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third, last = run_virtually(ask_all())
    assert (float(first[0]), float(last[0])) == (1, 4)
    for error in (second, third):
        with pytest.raises(WorkerError, match="rank 0 died"):
            raise error


def test_a_caller_who_has_gone_does_not_disturb_the_others() -> None:
    reference = reference_of(FakeLearnerGroup())

    async def ask_all() -> Any:
        gone = asyncio.create_task(reference.score(make_completion(1)))
        stays = asyncio.create_task(reference.score(make_completion(2)))
        await asyncio.sleep(0.5)
        gone.cancel()
        return await stays

    assert float(run_virtually(ask_all())[0]) == 2
