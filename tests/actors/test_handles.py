"""What handles add to a fleet: a reward that failed is tried again. Ray is not started."""

import pytest

from actors.config import FaultsConfig
from actors.handles import ScorerFleet
from core.errors import RewardError
from tests.fakes import FakeWorker, make_completion, run_virtually


class FlakyScorer(FakeWorker):
    """Fails the first `failures` times."""

    failures = 0
    num_calls = 0

    async def score(self, completion: object) -> float:
        self.num_calls += 1
        if self.num_calls <= self.failures:
            raise RewardError("reward function x raised TimeoutError")
        return 7.0


def score(*, failures: int, retries: int) -> tuple[float, FlakyScorer]:
    scorers: list[FlakyScorer] = []

    def launch(name: str) -> FlakyScorer:
        scorers.append(FlakyScorer(name))
        scorers[-1].failures = failures
        return scorers[-1]

    async def scenario() -> float:
        fleet = ScorerFleet("reward-x", launch, faults=FaultsConfig(reward_retries=retries), start_s=10)  # type: ignore[arg-type]
        await fleet.start(1)
        try:
            result: float = await fleet.score(make_completion(5))
            return result
        finally:
            await fleet.close()

    return run_virtually(scenario()), scorers[0]


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_reward_that_failed_is_tried_again_by_the_same_worker(failures: int) -> None:
    result, scorer = score(failures=failures, retries=2)
    assert (result, scorer.num_calls) == (7.0, failures + 1)


def test_after_the_last_try_the_error_is_heard() -> None:
    with pytest.raises(RewardError, match="raised TimeoutError"):
        score(failures=3, retries=2)
