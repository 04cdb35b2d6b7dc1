"""Kills and stalls the processes of a run, one after the other at random moments, and says what became of the run.

    python -m tests.end_to_end.chaos --seed 0 --faults 30      (make chaos SEED=0)

Every part is real: vLLM, DeepSpeed, Ray, SIGKILL and SIGSTOP. The model is tiny. A fault is survived once whoever
was killed is replaced and a step later than any before is done. Who stalls is stopped, and woken after it was
replaced, if it is still there: what it says then must not count. Who stalls for a moment is woken while it is
suspect or a push waits for it, and must serve again, the same process. An engine breaks in a worker that lives on.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from core.remote import WORKER_VARIABLE
from orchestration.control.client import LiveRun
from tests.end_to_end.leash_process import LeashProcess, leash, records
from tests.end_to_end.ray_cluster import RayCluster
from tests.end_to_end.tiny_recipe import write_tiny_recipe

DEADLINE_S = 400
"""For one recovery: ten times what it takes on two idle cores."""
CHECKPOINT_EVERY = 4
NODE_CPUS = 1
"""Of the extra node: room for one rollout worker of `ON_TWO_NODES`."""
HEAD_CPUS = 2
ON_TWO_NODES = ("rollout.resources.num_cpus=1",)
"""So that one rollout worker fits beside the learner and the scorers, and the other only on the extra node."""
LEARNED = ("score_mean", "kl_nats_per_sequence", "policy_loss", "gradient_norm", "logprob_gap_max")
"""Figures of a step that follow from its rollouts and its weights alone."""
KINDS = ("rollout", "reference", "reward", "learner", "driver")
STALLS = ("rollout stalled", "reward stalled", "rollout stalled for a moment", "reward stalled for a moment")
ENGINE = "engine"
ALL_KINDS = (*KINDS, *STALLS, ENGINE, "node")
MOMENT_S = 14.0
"""Longer than a heartbeat and a silence of `ENDLESS`, shorter than it takes to be given up."""
BROKEN_ENGINE = Path(__file__).with_name("broken_engine")
"""Where Python finds what breaks an engine from within."""
TO_BREAK = "rollout-0"

ENDLESS = f"""\
[rollout]
workers = 2
resources = {{ num_cpus = 0.1 }}

[reference]
resources = {{ num_cpus = 0.1 }}

[learner]
resources = {{ num_cpus = 0.1 }}

[trainer]
steps = 100000
heldout_prompts = 4
checkpoint_every = {CHECKPOINT_EVERY}
save_model = false

[faults]
heartbeat_s = 1
silence_s = 10
"""
"""Goes on until it is stopped."""


@dataclass(slots=True)
class Tally:
    """What came of the faults of one kind."""

    recovery_s: list[float] = field(default_factory=list)
    redone_tokens: int = 0
    """Tokens of steps that were trained on again, because the last checkpoint was older."""


class Chaos:
    """A run, and who kills its processes.

    with Chaos(recipe, folder) as chaos:
        chaos.strike("rollout", random.Random(0))
        output = chaos.stop()
    """

    def __init__(
        self, recipe: Path, folder: Path, *overrides: str, cluster: RayCluster | None = None
    ) -> None:
        """`cluster`: the Ray cluster to join, whose last node is the one to kill; left out, the run has its own."""
        self._command: list[str | Path] = ["train", recipe, *overrides, "--run", folder]
        self._cluster = cluster
        self._enter = cluster.head.enter if cluster else ()
        self._num_orders = 0
        self.folder = folder
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.differences: list[str] = []
        """Where a step that was done again, from journaled rollouts, came out otherwise."""
        self._num_drivers = 0
        self.num_woken = 0
        """Stalled processes that were still there to be woken."""
        self._process = self._launch()

    def __enter__(self) -> "Chaos":
        try:
            self.until(lambda: self.step >= 1)
        except BaseException:
            self._process.kill()
            raise
        self._started = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()

    @property
    def step(self) -> int:
        """The last step that is done, and not undone by a crash."""
        done = records(self.folder)
        return int(done[-1]["step"]) if done else 0

    def strike(self, kind: str, chance: random.Random) -> None:
        """After a moment kill a process of this kind, and wait until the run has got over it."""
        time.sleep(chance.uniform(0.0, 2.0))
        done, struck = records(self.folder), time.monotonic()
        before = int(done[-1]["step"])
        if kind == "driver":
            self._process.kill()
            self._process = self._launch("--resume")
        elif kind == "node":
            assert self._cluster is not None
            self._replace_node(self._cluster)
        elif kind in STALLS:
            self._stall(kind, chance)
        elif kind == ENGINE:
            self.until(lambda: self._all_serve("rollout"))  # one that starts has no engine yet
            victim = next(p for p in self.processes("rollout") if worker_of(p) == TO_BREAK)
            break_file(self.folder).touch()
            self._until_replaced(victim.pid, TO_BREAK)
        else:
            victim = chance.choice(self.processes(kind))
            name = worker_of(victim)
            victim.kill()
            self._until_replaced(victim.pid, name)
        self.until(lambda: self.step > before)
        tally = self.tallies[kind]
        tally.recovery_s.append(time.monotonic() - struck)
        if kind in ("learner", "driver"):
            redone = [
                record for record in done if record["step"] > before // CHECKPOINT_EVERY * CHECKPOINT_EVERY
            ]
            tally.redone_tokens += sum(int(record["tokens"]) for record in redone)
            self.differences += list(differences(redone, records(self.folder)))

    def order(self, command: str, *arguments: str) -> str:
        """Give the run an order; what `leash` says to it."""
        self._num_orders += 1
        log = self.folder.with_name(f"{self.folder.name}-order-{self._num_orders}.log")
        ended = leash(command, self.folder, *arguments, log=log, enter=self._enter).wait(DEADLINE_S)
        assert ended.code == 0, ended.output
        return ended.output

    def stop(self) -> str:
        """Ask the run to end as a scheduler would; what it printed. Call once."""
        self.wall_s = time.monotonic() - self._started
        self._process.terminate()
        return self._process.wait(DEADLINE_S).output

    def processes(self, kind: str) -> list[psutil.Process]:
        """Living workers of a kind."""
        owners = [self._process, *(self._cluster.nodes if self._cluster else ())]
        return [p for owner in owners for p in owner.descendants() if worker_of(p).startswith(f"{kind}-")]

    @property
    def productive_fraction(self) -> float:
        """Of the time since the first step: the part spent on steps that count."""
        return sum(float(record["step_s"]) for record in records(self.folder)[1:]) / self.wall_s

    def _stall(self, kind: str, chance: random.Random) -> None:
        """Stop a process that serves: until it is replaced, or until it is suspect (or a push has waited for it
        about as long). One that starts would not be noticed before `deadlines.start_s`."""
        self.until(lambda: self._all_serve(kind.partition(" ")[0]))
        victim = chance.choice(self.processes(kind.partition(" ")[0]))
        name = worker_of(victim)
        victim.suspend()
        try:
            if kind.endswith("moment"):
                woken_by = time.monotonic() + MOMENT_S
                self.until(lambda: self._state(name) == "suspect" or time.monotonic() > woken_by)
            else:
                self._until_replaced(victim.pid, name)
        finally:
            with suppress(psutil.NoSuchProcess):
                victim.resume()
                self.num_woken += 1
        self.until(lambda: self._state(name) == "serving")
        if kind.endswith("moment"):
            assert victim.is_running(), f"{name} was replaced, although it had woken"

    def _all_serve(self, kind: str) -> bool:
        names = [worker_of(process) for process in self.processes(kind)]
        return bool(names) and all(self._state(name) == "serving" for name in names)

    def _state(self, name: str) -> str:
        """As `leash status` says it."""
        workers = LiveRun(self.folder).status()["workers"]
        return next((str(worker["state"]) for worker in workers if worker["name"] == name), "gone")

    def _until_replaced(self, pid: int, name: str) -> None:
        """Another process has the place of this one."""
        kind = name.partition("-")[0]
        self.until(lambda: name in [worker_of(p) for p in self.processes(kind) if p.pid != pid])

    def _replace_node(self, cluster: RayCluster) -> None:
        """Kill the last node; another joins, and takes its workers."""
        lost = {worker_of(process) for process in cluster.nodes[-1].descendants()} - {""}
        assert lost, "no worker was on the node"
        cluster.nodes[-1].kill()
        node = cluster.add_node(num_cpus=NODE_CPUS)
        self.until(lambda: lost <= {worker_of(process) for process in node.descendants()})

    def _launch(self, *options: str) -> LeashProcess:
        self._num_drivers += 1
        log = self.folder.with_name(f"{self.folder.name}-{self._num_drivers}.log")
        if self._cluster is None:
            return leash(*self._command, *options, log=log, environment=breakable(self.folder))
        return leash(
            *(*self._command, "--address", self._cluster.address, *options),
            log=log,
            environment=self._cluster.settings,
            enter=self._enter,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait while the run lives."""
        self._process.wait_until(condition, DEADLINE_S)


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """It runs for a fifth of the time, as on a host that has too much to do."""
    is_over = threading.Event()

    def slow_down() -> None:
        with suppress(psutil.NoSuchProcess):
            while not is_over.is_set():
                process.suspend()
                time.sleep(0.4)
                process.resume()
                is_over.wait(0.1)

    slowing = threading.Thread(target=slow_down)
    slowing.start()
    try:
        yield
    finally:
        is_over.set()
        slowing.join()


def break_file(run: Path) -> Path:
    """Where it is, the engine of `TO_BREAK` breaks."""
    return run.with_name(f"{run.name}-break")


def breakable(run: Path) -> dict[str, str]:
    """Environment of processes one of which has an engine that can be broken."""
    path = [str(BROKEN_ENGINE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "ENGINE_TO_BREAK": TO_BREAK,
        "BREAK_FILE": str(break_file(run)),
    }


def differences(first: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where a step came out otherwise when it was done again."""
    by_step = {record["step"]: record for record in again}
    for record in first:
        for name in LEARNED:
            value, other = record.get(name), by_step[record["step"]].get(name)
            if value != other:
                yield f"step {record['step']}: {name} was {value!r}, and is {other!r}"


def worker_of(process: psutil.Process) -> str:
    """The worker's stable name, such as rollout-0; empty if the process is none."""
    try:
        if not process.name().startswith("ray::"):
            return ""
        return str(process.environ().get(WORKER_VARIABLE, ""))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def table(chaos: Chaos) -> str:
    """One row a kind of fault."""
    lines = [
        "| killed | times | survived | recovery, median s | worst s | redone tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, tally in chaos.tallies.items():
        times = tally.recovery_s
        lines.append(
            f"| {kind} | {len(times)} | {len(times)} | {statistics.median(times):.0f} | {max(times):.0f} "
            f"| {tally.redone_tokens} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=30)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        # torch, which only the making of the models needs.
        from tests.tiny_models import build_tiny_model

        prompts = home / "prompts.jsonl"
        prompts.write_text(
            "".join(f'{{"prompt": "Film {word} is"}}\n' for word in range(40)), encoding="utf-8"
        )
        recipe = write_tiny_recipe(
            home / "chaos.toml", ENDLESS, model=build_tiny_model(home / "policy"), prompts=prompts
        )
        cluster = RayCluster(home, num_cpus=HEAD_CPUS)
        cluster.settings |= breakable(home / "run")
        with cluster:
            cluster.add_node(num_cpus=NODE_CPUS)
            with Chaos(recipe, home / "run", *ON_TWO_NODES, cluster=cluster) as chaos:
                kinds = [*ALL_KINDS, *chance.choices(ALL_KINDS, k=max(0, args.faults - len(ALL_KINDS)))]
                for number, kind in enumerate(kinds[: args.faults], start=1):
                    chaos.strike(kind, chance)
                    seconds = chaos.tallies[kind].recovery_s[-1]
                    print(
                        f"{number}/{args.faults} {kind}: over it after {seconds:.0f} s, at step {chaos.step}",
                        flush=True,
                    )
                chaos.stop()
        print("\n".join(["", *chaos.differences]))
        print(f"{chaos.num_woken} stalled processes were still there to be woken")
        print(f"{table(chaos)}\n\nproductive fraction of the time: {chaos.productive_fraction:.2f}")
        ended = leash("verify", home / "run", log=home / "verify.log").wait(DEADLINE_S)
        print(f"\n{ended.output}")
        sys.exit(ended.code)


if __name__ == "__main__":
    main()
