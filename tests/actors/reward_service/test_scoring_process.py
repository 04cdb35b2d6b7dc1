"""The process of a reward: it hangs, dies and raises, and the next batch is scored all the same."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.config import RewardFunctionReward
from actors.reward_service.scoring_process import RewardSource, ScoringProcess, outcomes_of
from core.config import ModelConfig
from core.errors import RewardError, UserError, WorkerLost, WorkerSilent
from core.messages import Completion
from tests.fakes import make_completion, make_prompt

REWARD = "tests.actors.reward_service.odd_reward:reward"


def completion(text: str, **columns: Any) -> Completion:
    return make_completion(5, prompt=make_prompt(text="p", **columns), text=text)


@pytest.fixture
def start() -> Iterator[Callable[..., ScoringProcess]]:
    processes: list[ScoringProcess] = []

    def start(
        function: str = REWARD, *, deadline_s: float = 30, memory_gib: float | None = None
    ) -> ScoringProcess:
        config = RewardFunctionReward(kind="function", name="f", function=function, memory_gib=memory_gib)
        source = RewardSource(config=config, path=None, model_path=Path(), model=ModelConfig(path="unused"))
        processes.append(ScoringProcess(source, deadline_s=deadline_s, start_s=120))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def test_a_reward_that_dies_is_started_again(start: Callable[..., ScoringProcess]) -> None:
    process = start()
    (first,) = process.score([completion("who")])
    assert first != os.getpid()
    assert process.score([completion("abc"), completion("raise"), completion("")]) == [
        3.0,
        f"reward function {REWARD} raised KeyError: 'lost'",
        0.0,
    ]
    assert process.score([completion("who")]) == [first]
    with pytest.raises(WorkerLost, match=r"died \(scoring\), exit code 3"):
        process.score([completion("die")])
    (second,) = process.score([completion("who")])
    assert second not in (first, os.getpid())


def test_a_reward_that_hangs_is_ended_and_started_again(start: Callable[..., ScoringProcess]) -> None:
    process = start(deadline_s=2)
    (first,) = process.score([completion("who")])
    assert isinstance(first, float)
    with pytest.raises(WorkerSilent, match=r"did not answer within 2 s \(scoring\)"):
        process.score([completion("hang")])
    assert not psutil.pid_exists(int(first))
    assert process.score([completion("abc")]) == [3.0]


def test_a_reward_that_fills_its_memory_is_told_so_and_started_again(
    start: Callable[..., ScoringProcess],
) -> None:
    process = start(memory_gib=0.25)
    (first,) = process.score([completion("who")])
    assert process.score([completion("hoard")]) == [
        f"reward function {REWARD} reached its limit of 0.25 GiB of memory: raise memory_gib in its "
        "[[rewards]] table, or let it keep less"
    ]
    (second,) = process.score([completion("who")])
    assert second != first
    assert not psutil.pid_exists(int(first))


def test_a_reward_that_does_not_load_is_the_users_error(start: Callable[..., ScoringProcess]) -> None:
    with pytest.raises(UserError, match="'no_such_module:f' cannot be loaded"):
        start("no_such_module:f")


class Columns:
    """A reward that sees which columns a batch has, and fails for some texts."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[str], list[str]]] = []

    def score(self, completions: Sequence[Completion]) -> list[float]:
        columns = set.intersection(*(set(c.prompt.columns) for c in completions))
        texts = [c.text for c in completions]
        self.batches.append((texts, sorted(columns)))
        if "bad" in texts:
            raise RewardError("bad text")
        return [float("nan") if text == "nan" else float(len(text)) for text in texts]


def test_requests_with_other_columns_do_not_take_each_others_away() -> None:
    reward = Columns()
    batch = [completion("a", x=1), completion("bb"), completion("ccc", x=2), completion("dddd", x=1, y=1)]
    assert outcomes_of(reward, batch) == [1.0, 2.0, 3.0, 4.0]
    assert reward.batches == [(["a", "ccc"], ["x"]), (["bb"], []), (["dddd"], ["x", "y"])]


def test_nobody_goes_without_a_score_for_somebody_elses_text() -> None:
    reward = Columns()
    assert outcomes_of(reward, [completion("a"), completion("bad"), completion("cc")]) == [
        1.0,
        "bad text",
        2.0,
    ]
    assert [texts for texts, _ in reward.batches] == [["a", "bad", "cc"], ["a"], ["bad"], ["cc"]]


def test_a_score_that_is_not_finite_is_none() -> None:
    outcomes = outcomes_of(Columns(), [completion("nan"), completion("a")])
    assert outcomes == ["the reward returned nan; rewards must be finite", 1.0]
