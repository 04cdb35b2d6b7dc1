"""Workers that join, leave and die, on a clock without waiting."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors.config import FaultsConfig
from actors.fleet import Fleet
from actors.signs_of_life import REPORT_S
from actors.slot import NEXT, Slot, WorkerState
from core.errors import NoWorkerLeft, RetriesExhausted, UserError, WorkerError, WorkerLost
from core.worker_report import WorkerReport
from tests.fakes import FakeWorker, run_virtually

FAULTS = FaultsConfig(max_retries=2, max_restarts=2, heartbeat_s=10, silence_s=30, drain_s=100)


class Workers:
    """A fleet, and every process that it ever launched."""

    def __init__(self, *, faults: FaultsConfig = FAULTS, make: Callable[..., Any] = FakeWorker) -> None:
        self.launched: list[Any] = []
        self.reports: list[tuple[str, WorkerReport]] = []
        self.events: list[tuple[str, str]] = []
        self.admitted: list[Any] = []
        self._make = make
        self.fleet: Fleet[Any] = Fleet(
            "worker",
            self._launch,
            faults=faults,
            start_s=1000,
            on_event=lambda worker, event: self.events.append((worker, event)),
            on_report=lambda worker, report: self.reports.append((worker, report)),
        )
        self.fleet.admit = self._admit

    @property
    def states(self) -> dict[str, str]:
        return {slot.name: str(slot.state) for slot in self.fleet.slots}

    def _launch(self, name: str) -> Any:
        self.launched.append(self._make(name))
        return self.launched[-1]

    async def _admit(self, handle: Any) -> bool:
        await handle.work(1.0)
        self.admitted.append(handle)
        return True


def run(workers: Workers, scenario: Callable[[], Coroutine[Any, Any, Any]], *, size: int = 1) -> Any:
    async def start() -> Any:
        await workers.fleet.start(size)
        try:
            return await scenario()
        finally:
            await workers.fleet.close()

    return run_virtually(start())


async def settle(seconds: float = 5.0) -> None:
    await asyncio.sleep(seconds)


def test_a_worker_serves_once_it_was_admitted() -> None:
    workers = Workers()

    async def scenario() -> list[dict[str, str]]:
        await asyncio.sleep(0.5)
        early = workers.states
        await settle()
        return [early, workers.states]

    assert run(workers, scenario) == [{"worker-0": "stale"}, {"worker-0": "serving"}]
    assert workers.admitted == workers.launched


def test_a_worker_that_dies_at_work_is_replaced_and_the_work_done_by_another() -> None:
    workers = Workers()
    done_by: list[Any] = []

    async def work(worker: FakeWorker) -> str:
        done_by.append(worker)
        await worker.work(20.0)
        return "done"

    async def scenario() -> str:
        await settle()
        task = asyncio.create_task(workers.fleet.call(work))
        await settle()
        workers.launched[0].kill()
        return await task

    assert run(workers, scenario) == "done"
    assert len(done_by) == 2
    assert done_by == workers.launched
    assert workers.admitted == workers.launched, "the second was admitted before it got work"
    assert workers.events == [("worker-0", "died: worker-0 died"), ("worker-0", "serves")]


def test_a_worker_that_dies_idle_is_noticed_by_its_heartbeat() -> None:
    workers = Workers()

    async def scenario() -> tuple[float, int]:
        await settle()
        workers.launched[0].kill()
        await asyncio.sleep(FAULTS.heartbeat_s + 3)
        slot = workers.fleet.slots[0]
        return slot.restarts, len(workers.launched)

    assert run(workers, scenario) == (1, 2)


def test_a_silent_worker_is_suspect_and_gets_nothing_new_until_it_answers() -> None:
    workers = Workers()

    async def scenario() -> tuple[dict[str, str], str, dict[str, str]]:
        await settle()
        workers.launched[0].is_silent = True
        await asyncio.sleep(FAULTS.heartbeat_s + FAULTS.silence_s + 1)
        suspect = workers.states
        async with workers.fleet.use() as handle:
            chosen = handle.name
        workers.launched[0].is_silent = False
        await asyncio.sleep(FAULTS.silence_s + 1)
        return suspect, chosen, workers.states

    suspect, chosen, _ = run(workers, scenario, size=2)
    assert (suspect, chosen) == ({"worker-0": "suspect", "worker-1": "serving"}, "worker-1")


class SilentOnce(FakeWorker):
    """Does not answer the second sign of life that it is asked for."""

    async def ping(self, deadline_s: float) -> WorkerReport:
        self.is_silent = self.num_pings == 1
        return await super().ping(deadline_s)


def test_a_worker_that_was_silent_once_serves_again_without_a_new_process() -> None:
    workers = Workers(make=SilentOnce)

    async def scenario() -> tuple[dict[str, str], dict[str, str]]:
        await asyncio.sleep(1 + 2 * FAULTS.heartbeat_s + FAULTS.silence_s + 0.5)
        suspect = workers.states
        await asyncio.sleep(1.0)
        return suspect, workers.states

    # The answer to the second question follows the silence at once.
    assert run(workers, scenario)[1] == {"worker-0": "serving"}
    assert (len(workers.launched), len(workers.admitted), workers.events) == (1, 1, [])


def test_a_worker_that_missed_a_refit_is_admitted_again_before_it_serves() -> None:
    workers = Workers(make=SilentOnce)

    async def refit() -> list[str]:
        async with workers.fleet.admission.pushing():
            return await workers.fleet.refit(lambda handle: asyncio.sleep(0, handle.name))

    async def scenario() -> tuple[list[str], list[str]]:
        await asyncio.sleep(1 + 2 * FAULTS.heartbeat_s + FAULTS.silence_s - 1)
        workers.fleet.slots[0].enter(WorkerState.SUSPECT)
        refitted = await refit()
        await settle(20.0)
        return refitted, [str(slot.state) for slot in workers.fleet.slots]

    assert run(workers, scenario) == ([], ["serving"])
    assert len(workers.admitted) == 2


def test_two_silences_in_a_row_are_death() -> None:
    workers = Workers()

    async def scenario() -> None:
        await settle()
        workers.launched[0].is_silent = True
        await asyncio.sleep(FAULTS.heartbeat_s + 2 * FAULTS.silence_s + 3)

    run(workers, scenario)
    assert workers.launched[0].is_killed
    assert len(workers.launched) == 2
    assert workers.events == [
        ("worker-0", "died: worker-0 did not answer within 30 s (a sign of life)"),
        ("worker-0", "serves"),
    ]


def test_a_refit_makes_stale_workers_serve_and_replaces_those_that_die_of_it() -> None:
    workers = Workers()

    async def never(handle: Any) -> bool:
        return False

    async def refit(handle: FakeWorker) -> str:
        if handle is workers.launched[0]:
            handle.kill()
        await handle.work(1.0)
        return handle.name

    async def scenario() -> tuple[dict[str, str], list[str], dict[str, str]]:
        before = workers.states
        async with workers.fleet.admission.pushing():
            done = await workers.fleet.refit(refit)
        return before, done, workers.states

    workers.fleet.admit = never
    before, done, after = run(workers, scenario, size=2)
    assert before == {"worker-0": "stale", "worker-1": "stale"}
    assert (done, after) == (["worker-1"], {"worker-0": "dead", "worker-1": "serving"})


@pytest.mark.parametrize("error", [None, WorkerLost("worker-0 died (pulling weights)")])
def test_a_refit_does_not_count_for_the_successor_of_who_was_asked(error: WorkerLost | None) -> None:
    """It died while it was asked, and a new process is up in its place before the answer is there."""
    workers = Workers()

    async def refit(handle: FakeWorker) -> None:
        with pytest.raises(WorkerLost):
            async with workers.fleet.use():
                raise WorkerLost("worker-0 died (sampling)")
        await asyncio.sleep(5.0)
        if error:
            raise error

    async def scenario() -> dict[str, str]:
        await settle()
        async with workers.fleet.admission.pushing():
            await workers.fleet.refit(refit)
            return workers.states

    assert run(workers, scenario) == {"worker-0": "stale"}
    assert len(workers.launched) == 2


def test_a_refit_that_living_workers_refuse_is_an_error() -> None:
    workers = Workers()

    async def refuse(handle: FakeWorker) -> None:
        raise WorkerError("the probe differs by 1.3 nats")

    async def scenario() -> None:
        async with workers.fleet.admission.pushing():
            await workers.fleet.refit(refuse)

    with pytest.raises(WorkerError, match="the probe differs"):
        run(workers, scenario, size=2)


class Busy(FakeWorker):
    """Its pings wait until its weight pull is over; its reports do not."""

    is_pulling = False

    async def ping(self, deadline_s: float) -> WorkerReport:
        if self.is_pulling:
            await asyncio.sleep(deadline_s)
            raise WorkerLost(f"{self.name} did not answer within {deadline_s:g} s (a sign of life)")
        return await super().ping(deadline_s)


def test_a_push_does_not_wait_longer_for_a_silent_worker_than_anybody_else_does() -> None:
    workers = Workers()

    async def pull(handle: FakeWorker) -> str:
        await handle.work(1000.0 if handle.is_silent else 1.0)
        return handle.name

    async def scenario() -> tuple[list[str], float]:
        await settle()
        started = asyncio.get_running_loop().time()
        workers.launched[0].is_silent = True
        async with workers.fleet.admission.pushing():
            done = await workers.fleet.refit(pull)
        return done, asyncio.get_running_loop().time() - started

    done, took_s = run(workers, scenario, size=2)
    assert (done, took_s) == (["worker-1"], FAULTS.heartbeat_s + 2 * FAULTS.silence_s)
    assert workers.events == [("worker-0", "died: worker-0 did not answer within 60 s (a report)")]


def test_a_push_waits_for_a_worker_that_lives_and_takes_long() -> None:
    """Its pings go unanswered for longer than those of a worker that serves may."""
    workers = Workers(make=Busy)

    async def pull(handle: Busy) -> str:
        handle.is_pulling = True
        await handle.work(500.0)
        handle.is_pulling = False
        return handle.name

    async def scenario() -> list[str]:
        await asyncio.sleep(1.0 + FAULTS.heartbeat_s - 0.5)
        async with workers.fleet.admission.pushing():  # the next heartbeat falls into it
            done = await workers.fleet.refit(pull)
        await settle(100.0)
        return done

    assert run(workers, scenario, size=2) == ["worker-0", "worker-1"]
    assert (workers.events, workers.states) == ([], {"worker-0": "serving", "worker-1": "serving"})


def test_however_many_workers_fall_silent_while_they_join_a_push_waits_for_one_of_them_at_most() -> None:
    workers = Workers()

    async def stall(handle: FakeWorker) -> bool:
        if handle is not workers.launched[0]:
            handle.is_silent = True
            await handle.work(1000.0)
        return True

    async def scenario() -> float:
        await settle()
        workers.fleet.scale(5)
        await settle(1.0)
        started = asyncio.get_running_loop().time()
        async with workers.fleet.admission.pushing():
            return asyncio.get_running_loop().time() - started

    workers.fleet.admit = stall
    assert run(workers, scenario) == FAULTS.heartbeat_s + 2 * FAULTS.silence_s - 1.0


def test_nobody_is_admitted_while_the_weights_change() -> None:
    workers = Workers()

    async def scenario() -> tuple[int, int]:
        async with workers.fleet.admission.pushing():
            workers.fleet.scale(2)
            await settle()
            during = len(workers.admitted)
        await settle()
        return during, len(workers.admitted)

    assert run(workers, scenario) == (0, 2)


def test_scaling_up_brings_workers_under_the_next_free_names() -> None:
    workers = Workers()

    async def scenario() -> dict[str, str]:
        await settle()
        workers.fleet.scale(3)
        await settle()
        return workers.states

    assert run(workers, scenario) == {f"worker-{i}": "serving" for i in range(3)}
    assert workers.events == [(f"worker-{i}", what) for what in ("joins", "serves") for i in (1, 2)]


def test_who_leaves_finishes_first_and_gets_nothing_new() -> None:
    workers = Workers()
    chosen: list[str] = []

    async def scenario() -> list[Any]:
        await settle()
        async with workers.fleet.use(), workers.fleet.use(), workers.fleet.use() as third:
            busy = third.name  # two serve: the third use shares the first worker
            workers.fleet.scale(1)
            draining = workers.states
            async with workers.fleet.use() as other:
                chosen.append(other.name)
        await settle()
        return [busy, draining, workers.states, workers.fleet.size]

    assert run(workers, scenario, size=2) == [
        "worker-0",
        {"worker-0": "serving", "worker-1": "draining"},
        {"worker-0": "serving"},
        1,
    ]
    assert chosen == ["worker-0"]
    assert workers.launched[1].is_killed
    assert workers.events == [("worker-1", "leaves"), ("worker-1", "left")]


def test_who_does_not_finish_in_time_hands_its_work_back() -> None:
    workers = Workers()
    tried: list[str] = []

    async def work(worker: FakeWorker) -> str:
        tried.append(worker.name)
        await worker.work(1e6 if worker.name == "worker-1" else 1.0)
        return worker.name

    async def scenario() -> str:
        await settle()
        async with workers.fleet.use():  # so that the work goes to the other
            task = asyncio.create_task(workers.fleet.call(work))
            await settle()
            workers.fleet.scale(1)
        return await task

    assert run(workers, scenario, size=2) == "worker-0"
    assert tried == ["worker-1", "worker-0"]


def test_who_is_told_to_leave_in_the_moment_that_it_is_up_leaves() -> None:
    """What it was started for is over, and that is no bug of the fleet's."""
    workers = Workers()

    async def scenario() -> dict[str, str]:
        await settle()
        workers.fleet.scale(2)
        late = workers.launched[1]
        ready = late.ready

        async def ready_and_told_to_leave(deadline_s: float) -> None:
            await ready(deadline_s)
            workers.fleet.scale(1)

        late.ready = ready_and_told_to_leave
        await settle()
        async with workers.fleet.use():
            return workers.states

    assert run(workers, scenario) == {"worker-0": "serving"}


def test_who_is_told_to_leave_while_it_is_dead_is_gone_at_once_and_not_started_again() -> None:
    def make(name: str) -> FakeWorker:
        return FakeWorker(name, fails=WorkerError("no memory") if name == "worker-1" else None)

    workers = Workers(make=make)

    async def scenario() -> list[dict[str, str]]:
        await settle()
        workers.fleet.scale(2)
        await settle(0.5)  # it failed twice, and would be started again after a pause of a second
        dead = workers.states
        workers.fleet.scale(1)
        await settle(0.1)
        return [dead, workers.states]

    dead, after = run(workers, scenario)
    assert dead == {"worker-0": "serving", "worker-1": "dead"}
    assert after == {"worker-0": "serving"}
    assert len(workers.launched) == 3
    assert [event for worker, event in workers.events if worker == "worker-1"] == [
        "joins",
        "died: no memory",
        "died: no memory",
        "leaves",
        "left",
    ]


def test_work_that_kills_every_worker_is_given_up() -> None:
    workers = Workers()

    async def poison(worker: FakeWorker) -> None:
        worker.kill()
        await worker.work(1.0)

    async def scenario() -> None:
        await workers.fleet.call(poison)

    with pytest.raises(RetriesExhausted, match="3 workers were lost on it; the last: worker-0 died"):
        run(workers, scenario)


def test_who_fails_to_start_again_and_again_is_given_up() -> None:
    """And once nobody is left, whoever needs a worker hears why."""
    count = itertools.count()

    def make(name: str) -> FakeWorker:
        return FakeWorker(name, fails=WorkerError("no memory") if next(count) else None)

    workers = Workers(make=make)

    async def scenario() -> None:
        await settle()
        workers.launched[0].kill()
        await asyncio.sleep(200.0)
        async with workers.fleet.use():
            pass

    with pytest.raises(NoWorkerLeft, match="worker-0 failed 3 times in a row, the last time: no memory"):
        run(workers, scenario)
    assert len(workers.launched) == 3
    assert workers.events[-1] == ("worker-0", "given up after 3 failures in a row")


def test_whoever_waits_too_long_for_a_worker_hears_what_they_all_do() -> None:
    workers = Workers(make=lambda name: FakeWorker(name, start_s=0.0))

    async def never(handle: Any) -> bool:
        return False

    async def scenario() -> None:
        async with workers.fleet.use():
            pass

    workers.fleet.admit = never
    with pytest.raises(NoWorkerLeft, match="nobody served for 1000 s: worker-0 is stale"):
        run(workers, scenario)


def test_the_first_start_raises_what_is_wrong() -> None:
    workers = Workers(make=lambda name: FakeWorker(name, fails=UserError("no such model")))
    with pytest.raises(UserError, match="no such model"):
        run(workers, lambda: settle())


def test_who_answers_is_reported_and_nobody_else() -> None:
    workers = Workers()

    async def scenario() -> dict[str, WorkerReport]:
        await settle()
        workers.launched[0].kill()
        return await workers.fleet.reports()

    reports = run(workers, scenario, size=2)
    assert {name: report.memory_bytes for name, report in reports.items()} == {"worker-1": 1000}


def test_a_silent_worker_holds_up_nobody_who_asks_for_reports() -> None:
    workers = Workers()

    async def ask() -> tuple[list[str], float]:
        started = asyncio.get_running_loop().time()
        reports = await workers.fleet.reports()
        return list(reports), asyncio.get_running_loop().time() - started

    async def scenario() -> list[tuple[list[str], float]]:
        await settle()
        workers.launched[0].is_silent = True
        silent = await ask()
        await asyncio.sleep(FAULTS.heartbeat_s + FAULTS.silence_s)
        assert workers.states["worker-0"] == "suspect"
        return [silent, await ask()]

    assert run(workers, scenario, size=2) == [(["worker-1"], REPORT_S), (["worker-1"], 0.0)]


def test_every_sign_of_life_says_how_the_worker_is_until_it_dies() -> None:
    workers = Workers()

    async def scenario() -> None:
        await settle()
        await asyncio.sleep(2.5 * FAULTS.heartbeat_s)
        workers.launched[0].kill()
        await asyncio.sleep(1.2 * FAULTS.heartbeat_s)

    run(workers, scenario, size=2)
    pings = [worker.num_pings for worker in workers.launched[:2]]
    heard = [
        [r.totals["leash_worker_cpu_seconds_total"] for who, r in workers.reports if who == f"worker-{i}"]
        for i in (0, 1)
    ]
    assert heard[0] == [1.0, 2.0]
    assert heard[1][:3] == [1.0, 2.0, 3.0]
    assert pings[1] == len(heard[1])


def test_closing_ends_every_process() -> None:
    workers = Workers()
    run(workers, lambda: settle(), size=3)
    assert [worker.is_killed for worker in workers.launched] == [True] * 3


def test_the_dead_serve_only_after_an_admission() -> None:
    """Every walk from DEAD to SERVING passes STALE."""
    walks = [[WorkerState.DEAD]]
    for _ in range(6):
        walks = [[*walk, state] for walk in walks for state in NEXT[walk[-1]]]
    served = [walk[: walk.index(WorkerState.SERVING)] for walk in walks if WorkerState.SERVING in walk]
    assert served
    assert all(WorkerState.STALE in walk for walk in served)


def test_a_forbidden_change_of_state_is_a_bug() -> None:
    slot = Slot("worker-0", FakeWorker(), state=WorkerState.DEAD)
    with pytest.raises(AssertionError, match="from dead to serving"):
        slot.enter(WorkerState.SERVING)
