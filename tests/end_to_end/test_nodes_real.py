"""A run on hosts with addresses and memory of their own: learner ranks and rollout workers on two of them; others
join, are refused, vanish, and leave."""

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.chaos import DEADLINE_S, ENDLESS, NODE_CPUS, Chaos, slowed, worker_of
from tests.end_to_end.hosts import Hosts, require_hosts
from tests.end_to_end.leash_process import Ended, leash, records
from tests.end_to_end.ray_cluster import RayCluster, with_other_torch
from tests.end_to_end.tiny_recipe import write_tiny_recipe

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

HOST_CPUS = 2
ON_HOSTS = (
    "learner.world_size=2",
    "learner.zero_stage=2",
    "learner.resources.num_cpus=1.2",  # two do not fit on a host
    "rollout.resources.num_cpus=0.5",  # beside a rank there is room for one
    # What is late on a host is overtaken.
    *("trainer.order=completion", "trainer.max_lag=2"),
    *("algorithm.importance_sampling=token", "deadlines.rollout_s=600"),
)
SERVING = {"rollout-0", "rollout-1", "rollout-2", "reference-0", "reward-letter_e-0"}
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the run showed and left."""

    folder: Path
    workers: list[set[str]]
    """Of each host with any, in the order in which they joined, while all of `SERVING` served."""
    metrics: str
    """What was served on the driver's host then."""
    elsewhere: Ended
    """Of `leash resume` on another host."""
    last_step: int
    """When the host that the third worker had left was taken away."""
    differences: list[str]
    """Between steps before the driver was killed and the same ones done again."""


@pytest.fixture(scope="module")
def seen(tiny_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    require_hosts()
    home = tmp_path_factory.mktemp("hosts")
    recipe = write_tiny_recipe(home / "chaos.toml", ENDLESS, model=tiny_model, prompts=prompts_file)
    with Hosts() as hosts, RayCluster(home, num_cpus=HOST_CPUS, hosts=hosts) as cluster:
        cluster.add_node(num_cpus=HOST_CPUS)
        with Chaos(recipe, home / "run", *ON_HOSTS, cluster=cluster) as chaos:
            other = cluster.add_node(num_cpus=NODE_CPUS, environment=with_other_torch(home))
            chaos.order("scale", "rollout=3")
            chaos.until(lambda: "rollout-2 given up" in events(chaos.folder))
            other.kill()

            cluster.add_node(num_cpus=NODE_CPUS)
            chaos.order("scale", "rollout=3")
            chaos.until(lambda: "rollout-2 serves" in events(chaos.folder))
            chaos.until(lambda: chaos.order("status").count("serving") == len(SERVING))
            workers = [
                {worker_of(process) for process in node.descendants()} - {""} for node in cluster.nodes
            ]
            url = (chaos.folder / "metrics-url.txt").read_text(encoding="utf-8").strip()
            read = [*cluster.head.enter, sys.executable, "-c", READ, url]
            metrics = subprocess.run(read, capture_output=True, text=True, check=True).stdout
            elsewhere = leash("resume", chaos.folder, log=home / "elsewhere.log", enter=hosts.add().enter)

            late = next(p for p in chaos.processes("rollout") if worker_of(p) == "rollout-2")
            with slowed(late):
                chaos.until(lambda: any(record["groups_overtaken"] for record in records(chaos.folder)))
            chaos.strike("node", random.Random(0))
            chaos.order("scale", "rollout=2")
            chaos.until(lambda: len(chaos.processes("rollout")) == 2)
            cluster.nodes[-1].kill()
            last_step = chaos.step
            chaos.until(lambda: chaos.step > last_step)
            chaos.strike("driver", random.Random(0))
            chaos.stop()
            yield Seen(
                chaos.folder,
                [some for some in workers if some],
                metrics,
                elsewhere.wait(DEADLINE_S),
                last_step,
                chaos.differences,
            )


def test_learner_and_rollout_workers_are_on_several_hosts(seen: Seen) -> None:
    first, second, third = seen.workers
    assert {"learner-0", "learner-1"} <= first | second
    assert all(len(host & {"learner-0", "learner-1"}) == 1 for host in (first, second))
    assert all(len(host & {"rollout-0", "rollout-1"}) == 1 for host in (first, second))
    assert third == {"rollout-2"}


def test_workers_on_all_hosts_had_every_version_of_the_weights(seen: Seen) -> None:
    steps = records(seen.folder)
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert max(record["probe_gap"] for record in steps if "probe_gap" in record) < 1e-3, "of all workers"
    in_step = [record["logprob_gap_max"] for record in steps if record["lag"] == 0]
    assert max(in_step) < 1e-3, "of tokens that the policy itself has sampled"


def test_a_worker_on_a_host_of_other_versions_never_serves(seen: Seen) -> None:
    told = [line for line in events(seen.folder).splitlines() if "rollout-2" in line]
    assert "runs other versions than the driver: torch 0.0.1 (here 2.13.0)" in told[1]
    assert "node 10.77.0.3 " in told[1]


def test_the_metrics_of_all_hosts_are_on_the_drivers(seen: Seen) -> None:
    said = {
        line.partition('worker="')[2].partition('"')[0]
        for line in seen.metrics.splitlines()
        if line.startswith("leash_worker_memory_bytes{")
    }
    assert said == SERVING | {"learner-0", "learner-1", "driver"}


def test_who_steers_from_another_host_is_sent_to_the_drivers(seen: Seen) -> None:
    assert seen.elsewhere.code == 2
    assert "was written on leash-host-1: give this command there" in seen.elsewhere.output


def test_a_host_that_vanishes_takes_nothing_but_its_workers(seen: Seen, tmp_path: Path) -> None:
    assert "rollout-2 died" in events(seen.folder)
    ended = leash("verify", seen.folder, log=tmp_path / "log").wait(DEADLINE_S)
    assert ended.code == 0, ended.output


def test_groups_are_overtaken_within_the_bound_on_lag_and_none_is_lost(seen: Seen) -> None:
    steps = records(seen.folder)
    assert max(record["groups_overtaken"] for record in steps) > 0
    assert max(record["lag"] for record in steps) <= 2
    assert seen.differences == [], "steps that were done again took the same groups"


def test_the_run_goes_on_without_a_host_that_has_left(seen: Seen) -> None:
    assert "rollout-2 left" in events(seen.folder)
    assert records(seen.folder)[-1]["step"] > seen.last_step


def events(folder: Path) -> str:
    return (folder / "events.jsonl").read_text(encoding="utf-8")
