"""The loop over the real queue and rollout pool, with fake workers and a clock without waiting."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.rollout import RolloutPool, WeightedReward
from core.errors import WorkerError
from core.messages import RolloutGroup, SampleRequest
from core.stream import SeededStream
from orchestration.loop.sources import GroupSource, SampledGroups
from orchestration.loop.step_record import timing_figures
from orchestration.loop.trainer import Trainer
from orchestration.recipe.config import DeadlinesConfig
from tests.fakes import (
    FakeLearner,
    FakePullReport,
    FakeSampler,
    FakeScorer,
    flat_reference,
    make_completion,
    make_group,
    make_prompt,
    make_rollout,
    run_virtually,
    serving_fleet,
)

PROMPTS = [make_prompt(index + 1, text=f"prompt {index}") for index in range(7)]
PROMPTS_PER_STEP = 3
GROUP_SIZE = 2


class Events:
    """The trainer's observer, and its ledger."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.begun: list[tuple[int, list[str]]] = []
        self.timings: list[dict[str, float]] = []
        self.versions: list[int] = []
        self.learning: list[dict[str, float]] = []
        self.again: dict[int, tuple[int, ...]] = {}
        """Groups of steps that were begun before a crash."""
        self.trained: set[int] = set()
        """Groups of the steps before those of this test."""

    def pending(self, stop: int) -> list[int]:
        again = [number for numbers in self.again.values() for number in numbers]
        known = self.trained | set(again)
        return again + [number for number in range(stop * PROMPTS_PER_STEP) if number not in known]

    def begun_before(self, step: int) -> tuple[int, ...]:
        return self.again.get(step, ())

    def phase(self, name: str) -> None:
        self.events.append(name)

    def begin_step(self, step: int, groups: Mapping[int, RolloutGroup]) -> None:
        assert len(groups) == PROMPTS_PER_STEP
        self.begun.append((step, [group.group_id for group in groups.values()]))

    async def step(
        self,
        version: int,
        groups: Sequence[RolloutGroup],
        learning: dict[str, float],
        timing: dict[str, float],
    ) -> None:
        assert len(groups) == PROMPTS_PER_STEP
        self.events.append(f"step {version}")
        self.versions.append(version)
        self.learning.append(learning)
        self.timings.append(timing)


def heavy_tailed(request: SampleRequest) -> float:
    """Seconds to sample a completion: one in 23 groups takes a hundred times longer."""
    return 100.0 if request.seed // 1000 % 23 == 5 else 1.0 + request.seed % 7 / 10


class Texts:
    """A source that does not sample."""

    on_policy = False

    async def group(self, number: int) -> RolloutGroup:
        return make_group(f"group-{number}", [make_rollout(make_completion(number))])


class Loop:
    """A trainer with everything that it drives."""

    def __init__(
        self,
        *,
        max_lag: int = 0,
        max_overtaken: int = 0,
        start: int = 0,
        seed: int = 0,
        fails_at: int = -1,
        rollout_s: float = 1e6,
        delay_s: Callable[[SampleRequest], float] = heavy_tailed,
        source: GroupSource | None = None,
        evaluate_every: int = 0,
    ) -> None:
        self.samplers = [
            FakeSampler(name, delay_s=delay_s, version=start) for name in ("rollout-0", "rollout-1")
        ]
        self.learner = FakeLearner(start, fails_at=fails_at)
        self.observer = Events()
        self.observer.trained = set(range(start * PROMPTS_PER_STEP))
        self.start = start
        rewards = {"one": WeightedReward(server=FakeScorer(lambda completion: 1.0), weight=1.0)}
        pool = RolloutPool(serving_fleet(*self.samplers), FakeScorer(flat_reference), rewards)
        self.trainer = Trainer(
            pool=pool,
            learner=self.learner,
            source=source
            or SampledGroups(
                pool,
                SeededStream([PROMPTS], seed=seed),
                group_size=GROUP_SIZE,
                max_resamples=0,
                seed=seed,
                on_discard=lambda *arguments: None,
            ),
            observer=self.observer,
            ledger=self.observer,
            prompts_per_step=PROMPTS_PER_STEP,
            max_lag=max_lag,
            max_overtaken=max_overtaken,
            deadlines=DeadlinesConfig(rollout_s=rollout_s),
            evaluate_every=evaluate_every,
        )

    def train(self, stop: int, after_step: Callable[[int], Awaitable[None]] | None = None) -> int:
        async def nothing(version: int) -> None:
            self.observer.events.append(f"after {version}")

        return run_virtually(
            self.trainer.train(start=self.start, stop=stop, after_step=after_step or nothing)
        )

    @property
    def drawn(self) -> list[tuple[str, str, list[int]]]:
        """Id, prompt and seeds of every group that was trained on (a fake completion is its seed)."""
        return [
            (
                group.group_id,
                group.prompt.text,
                [int(rollout.completion.token_ids_T[-1]) for rollout in group.rollouts],
            )
            for step in self.learner.trained_on
            for group in step
        ]


def test_synchronous_training_samples_every_group_with_the_weights_of_its_step() -> None:
    loop = Loop(max_lag=0)
    assert loop.train(20) == 20
    groups = [group for step in loop.learner.trained_on for group in step]
    assert [group.policy_version for group in groups] == [k // PROMPTS_PER_STEP for k in range(60)]
    assert all(len(r.completion.version_spans) == 1 for group in groups for r in group.rollouts)
    assert set(loop.learner.lags) == {0}
    assert loop.observer.versions == list(range(1, 21))
    assert [sampler.version for sampler in loop.samplers] == [20, 20]


@pytest.mark.parametrize("max_lag", [1, 3])
def test_the_lag_keeps_to_its_bound_and_makes_use_of_it(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag)
    assert loop.train(60) == 60
    assert max(loop.learner.lags) == max_lag
    assert min(loop.learner.lags) >= 0
    assert [name for name, _, _ in loop.drawn] == [f"group-{k}" for k in range(180)]


@pytest.mark.parametrize("max_overtaken", [2, 1000])
@pytest.mark.parametrize("max_lag", [1, 3])
def test_in_every_order_the_lag_is_bounded_and_every_group_is_trained_on_once(
    max_lag: int, max_overtaken: int
) -> None:
    loop = Loop(max_lag=max_lag, max_overtaken=max_overtaken)
    assert loop.train(60) == 60
    assert min(loop.learner.lags) >= 0  # of the oldest token of each group
    assert max(loop.learner.lags) == max_lag
    names = [name for name, _, _ in loop.drawn]
    assert names != (in_order := [f"group-{k}" for k in range(180)])
    assert sorted(names) == sorted(in_order)
    assert max(timing["groups_overtaken"] for timing in loop.observer.timings) in range(1, max_overtaken + 1)


def test_without_lag_every_order_is_that_of_the_start() -> None:
    synchronous, other = Loop(max_lag=0), Loop(max_lag=0, max_overtaken=1000)
    synchronous.train(20)
    other.train(20)
    assert other.drawn == synchronous.drawn
    assert other.observer.begun == synchronous.observer.begun


@pytest.mark.parametrize("delay_s", [heavy_tailed, lambda request: 1.0])
def test_a_resumed_run_redoes_its_steps_with_the_same_groups(
    delay_s: Callable[[SampleRequest], float],
) -> None:
    """The last checkpoint is of step 3, and steps 4 and 5 had begun. However fast rollouts are this time."""
    unbroken = Loop(max_lag=3, max_overtaken=1000)
    unbroken.train(8)
    begun = {
        step: tuple(int(name.removeprefix("group-")) for name in names)
        for step, names in unbroken.observer.begun
    }
    resumed = Loop(max_lag=3, max_overtaken=1000, start=3, delay_s=delay_s)
    resumed.observer.trained = {number for step in (1, 2, 3) for number in begun[step]}
    resumed.observer.again = {step: begun[step] for step in (4, 5)}
    assert begun[4] != (9, 10, 11)
    assert resumed.train(8) == 8
    assert resumed.observer.begun[:2] == unbroken.observer.begun[3:5]
    redone = [name for _, names in resumed.observer.begun for name in names]
    left = set(range(24)) - resumed.observer.trained
    assert sorted(redone) == sorted(f"group-{number}" for number in left)


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_step_is_told_in_order(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag)
    loop.train(2)
    assert loop.observer.events == [
        *("rollout", "learn", "push", "step 1", "after 1"),
        *("rollout", "learn", "push", "step 2", "after 2"),
    ]
    assert [learning["policy_loss"] for learning in loop.observer.learning] == [1.0, 2.0]


def test_after_a_step_every_rollout_worker_has_its_weights() -> None:
    loop = Loop(max_lag=2)
    held = []

    async def look(version: int) -> None:
        held.append((version, [sampler.version for sampler in loop.samplers]))

    loop.train(4, look)
    assert held == [(version, [version, version]) for version in (1, 2, 3, 4)]


def test_a_version_that_is_evaluated_reaches_the_workers_also_without_sampling() -> None:
    loop = Loop(source=Texts(), evaluate_every=2)
    held = []

    async def look(version: int) -> None:
        held.append([sampler.version for sampler in loop.samplers])

    loop.train(5, look)
    assert held == [[0, 0], [2, 2], [2, 2], [4, 4], [5, 5]]


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_source_that_does_not_sample_gets_no_new_weights_before_the_last_step(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag, source=Texts())
    held = []

    async def look(version: int) -> None:
        held.append([sampler.version for sampler in loop.samplers])

    assert loop.train(3, look) == 3
    assert held == [[0, 0], [0, 0], [3, 3]]
    untouched = ["rollout", "learn", "step 1", "rollout", "learn", "step 2"]
    assert loop.observer.events == [*untouched, "rollout", "learn", "push", "step 3"]
    assert ["pack_s" in timing for timing in loop.observer.timings] == [False, False, True]
    assert [name for name, _, _ in loop.drawn] == [f"group-{k}" for k in range(9)]


@pytest.mark.parametrize("max_lag", [0, 2])
def test_prompts_and_seeds_are_the_same_in_every_run(max_lag: int) -> None:
    """At any lag, and however long the rollouts take."""
    reference, other = Loop(max_lag=0), Loop(max_lag=max_lag, delay_s=lambda request: request.seed % 5)
    reference.train(5)
    other.train(5)
    assert other.drawn == reference.drawn
    seeds = [seed for _, _, of_group in reference.drawn for seed in of_group]
    assert len(set(seeds)) == len(seeds) == 5 * PROMPTS_PER_STEP * GROUP_SIZE
    different = Loop(seed=1)
    different.train(5)
    assert not {seed for _, _, of_group in different.drawn for seed in of_group} & set(seeds)
    assert [text for _, text, _ in different.drawn] != [text for _, text, _ in reference.drawn]


def test_a_resumed_run_goes_on_with_the_prompts_and_seeds_of_an_unbroken_one() -> None:
    unbroken, first, second = Loop(max_lag=1), Loop(max_lag=1), Loop(max_lag=1, start=3)
    unbroken.train(6)
    first.train(3)
    assert second.train(6) == 6
    assert first.drawn + second.drawn == unbroken.drawn
    assert second.observer.versions == [4, 5, 6]


@pytest.mark.parametrize("max_lag", [0, 3])
def test_nothing_is_sampled_that_no_step_will_train_on(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag)

    async def save_slowly(version: int) -> None:
        await asyncio.sleep(1000.0)

    loop.train(4, save_slowly)
    sampled = sum(len(sampler.requests) for sampler in loop.samplers)
    assert sampled == 4 * PROMPTS_PER_STEP * GROUP_SIZE


@pytest.mark.parametrize("max_lag", [0, 2])
def test_told_to_stop_it_finishes_the_step_and_leaves_nothing_running(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag)

    async def stop_during_third_step() -> tuple[int, int]:
        async def after(version: int) -> None:
            loop.observer.events.append(f"after {version}")
            if version == 2:
                asyncio.get_running_loop().call_later(0.5, loop.trainer.stop)

        reached = await loop.trainer.train(start=0, stop=100, after_step=after)
        return reached, len(asyncio.all_tasks()) - 1

    assert run_virtually(stop_during_third_step()) == (3, 0)
    assert loop.observer.events[-2:] == ["step 3", "after 3"]
    assert [sampler.num_running for sampler in loop.samplers] == [0, 0]


@pytest.mark.parametrize("max_lag", [0, 2])
def test_it_can_be_told_between_two_steps_to_end_earlier(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag)

    async def before(step: int) -> None:
        loop.observer.events.append(f"before {step}")
        if step == 3:
            loop.trainer.retarget(stop=3, evaluate_every=0)

    async def nothing(version: int) -> None: ...

    async def train() -> tuple[int, int]:
        reached = await loop.trainer.train(start=0, stop=100, before_step=before, after_step=nothing)
        return reached, len(asyncio.all_tasks()) - 1

    assert run_virtually(train()) == (3, 0)
    started = [event for event in loop.observer.events if event.startswith(("before", "step"))]
    assert started == [f"{what} {step}" for step in (1, 2, 3) for what in ("before", "step")]


def test_one_that_does_not_sample_pushes_the_weights_it_ends_with_also_when_that_is_earlier() -> None:
    loop = Loop(source=Texts())

    async def before(step: int) -> None:
        loop.trainer.retarget(stop=2, evaluate_every=0)

    async def nothing(version: int) -> None: ...

    run_virtually(loop.trainer.train(start=0, stop=9, before_step=before, after_step=nothing))
    assert loop.observer.versions == [1, 2]
    assert [sampler.version for sampler in loop.samplers] == [2, 2]


@pytest.mark.parametrize("max_lag", [0, 2])
def test_an_error_of_the_learner_surfaces_and_leaves_nothing_running(max_lag: int) -> None:
    loop = Loop(max_lag=max_lag, fails_at=2)
    with pytest.raises(WorkerError, match="learner-0 died"):
        loop.train(10)
    assert loop.observer.events[-1] == "learn"
    assert loop.observer.versions == [1, 2]
    assert [sampler.num_running for sampler in loop.samplers] == [0, 0]


def test_an_error_of_a_rollout_surfaces() -> None:
    def fail_at_group_4(request: SampleRequest) -> float:
        if request.seed // 1000 == 4:
            raise WorkerError("rollout-1 died")
        return 1.0

    loop = Loop(delay_s=fail_at_group_4)
    with pytest.raises(WorkerError, match="^rollout-1 died$"):
        loop.train(10)
    assert loop.observer.versions == [1]


def test_an_error_after_a_step_surfaces() -> None:
    async def disk_full(version: int) -> None:
        raise OSError("no space left")

    loop = Loop()
    with pytest.raises(OSError, match="no space left"):
        loop.train(10, disk_full)
    assert loop.observer.versions == [1]


def test_late_rollouts_end_the_run_with_their_number() -> None:
    loop = Loop(rollout_s=30.0)  # group 5 takes 100 seconds
    with pytest.raises(WorkerError, match="1 of 3 groups .* within 30 s"):
        loop.train(10)
    assert loop.observer.versions == [1]


def test_the_slowest_pull_and_the_largest_gap_are_reported() -> None:
    loop = Loop()
    loop.samplers[0].pull_report = FakePullReport(load_s=1.0, verify_s=5.0, probe_gap=1e-6)
    loop.samplers[1].pull_report = FakePullReport(load_s=3.0, verify_s=1.0, probe_gap=2e-6)
    loop.train(1)
    wanted: dict[str, Any] = {"pack_s": 0.1, "load_s": 1.0, "verify_s": 5.0, "probe_gap": 2e-6}
    timing = loop.observer.timings[0]
    assert {name: timing[name] for name in wanted} == wanted
    assert {"rollout_s", "learn_s", "push_s"} <= timing.keys()


def test_a_step_is_in_the_ledger_before_the_learner_sees_its_groups() -> None:
    loop = Loop()
    seen: list[int] = []
    train_step = loop.learner.train_step

    async def look(groups: Sequence[RolloutGroup]) -> dict[str, float]:
        seen.append(len(loop.observer.begun))
        return await train_step(groups)

    loop.learner.train_step = look  # type: ignore[method-assign]
    loop.train(3)
    assert seen == [1, 2, 3]
    assert loop.observer.begun == [
        (step, [f"group-{3 * (step - 1) + index}" for index in range(3)]) for step in (1, 2, 3)
    ]


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds that a step took are those of the loop's clock."""
    virtual = SimpleNamespace(perf_counter=lambda: asyncio.get_running_loop().time())
    for file in ("trainer", "rollout_queue"):
        monkeypatch.setattr(f"orchestration.loop.{file}.time", virtual)


@pytest.mark.usefixtures("virtual_time")
def test_an_evaluation_is_no_wait_for_rollouts() -> None:
    """The next step's groups are ready by then."""
    loop = Loop(max_lag=1, delay_s=lambda request: 1.0)

    async def evaluate(version: int) -> None:
        await asyncio.sleep(100.0)

    loop.train(4, evaluate)
    timings = loop.observer.timings
    assert [timing["wait_batch_s"] for timing in timings] == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert [timing["rollout_s"] for timing in timings] == pytest.approx([1.0, 100.0, 100.0, 100.0])


@pytest.mark.usefixtures("virtual_time")
def test_a_paused_loop_stands_still_after_its_step_and_goes_on() -> None:
    loop = Loop(delay_s=lambda request: 1.0)

    async def pause(version: int) -> None:
        if version == 2:
            loop.trainer.pause()
            asyncio.get_running_loop().call_later(500.0, loop.trainer.resume)

    assert loop.train(4, pause) == 4
    assert loop.observer.events.count("pause") == 1
    assert loop.learner.version == 4
    waited = [timing["rollout_s"] for timing in loop.observer.timings]
    assert 0 < max(waited) < 10, "standing still is not waiting for rollouts"
    assert max(timing["wait_policy_s"] for timing in loop.observer.timings) < 10, "nor for weights"


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize(("max_lag", "expected"), [(0, [6, 6, None, 6]), (1, [12, 6, None, 6])])
def test_a_step_knows_the_speed_of_what_was_sampled_in_it(max_lag: int, expected: list[float | None]) -> None:
    """A step has six completions of a token, each of which takes a second. With lag those of the first two steps
    are sampled at a time; some are sampled in the pause, which is in no step."""
    loop = Loop(max_lag=max_lag, delay_s=lambda request: 1.0)
    figures = []

    async def pause(version: int) -> None:
        figures.append(timing_figures(loop.learner.trained_on[-1], loop.observer.timings[-1]))
        if version == 2:
            loop.trainer.pause()
            asyncio.get_running_loop().call_later(500.0, loop.trainer.resume)

    loop.train(5, pause)
    speeds = [figure.get("tokens_per_second_rollout") for figure in figures]
    assert speeds[:4] == [speed and pytest.approx(speed) for speed in expected]


def test_a_paused_loop_can_be_stopped() -> None:
    loop = Loop(delay_s=lambda request: 1.0)

    async def pause(version: int) -> None:
        loop.trainer.pause()
        asyncio.get_running_loop().call_later(500.0, loop.trainer.stop)

    assert loop.train(4, pause) == 1


def test_a_rollout_worker_that_dies_changes_nothing_in_what_is_trained_on() -> None:
    def drawn(dies: bool) -> list[Any]:
        loop = Loop(max_lag=1)

        async def kill_one(version: int) -> None:
            if dies and version == 3:
                asyncio.get_running_loop().call_later(0.5, loop.samplers[1].kill)

        assert loop.train(10, kill_one) == 10
        return loop.drawn

    assert drawn(dies=True) == drawn(dies=False)
