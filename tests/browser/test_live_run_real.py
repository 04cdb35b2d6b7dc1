"""A real run, seen while it lives: by a real Prometheus, in a real browser, and in TensorBoard's files."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core.metrics.registry import METRICS
from tests.end_to_end.leash_process import LeashProcess, leash, records
from tests.end_to_end.tiny_recipe import LETTER_E, TASTE, write_tiny_recipe
from tests.orchestration.monitoring.prometheus_tools import expressions_without_series, following, metrics_in

pytestmark = [pytest.mark.real, pytest.mark.timeout(500)]

DEADLINE_S = 240
SCRAPES_S = 5
"""Prometheus looks every second, and rates need several looks."""
GOLD = """\
[[rewards]]
kind = "function"
name = "gold"
function = "tests.end_to_end.reward_functions:letter_e"
weight = 0.0
resources = { num_cpus = 0.1, threads = 1 }
"""
CHANGES = """\
[algorithm]
kind = "ppo"
num_minibatches = 2

[kl]
kl_coef = 0.002
controller = "adaptive"
kl_target = 20.0

[learner]
peak_tflops = 0.1

[trainer]
steps = 100000
checkpoint_every = 2

[trackers]
tensorboard = true

"""
NOT_IN_THIS_RUN = {
    *("leash_kl_exact_nats_per_token", "leash_kl_loss", "leash_entropy"),
    *(
        "leash_pretraining_loss",
        "leash_pair_accuracy_fraction",
        "leash_pair_margin_nats",
        "leash_pair_score_gap",
    ),
    *("leash_groups_discarded_total", "leash_worker_restarts_total", "leash_alarms_total"),
    *("leash_worker_gpu_memory_bytes", "leash_worker_gpu_busy_fraction"),
}
"""Of other methods, or of misfortunes that do not befall it, or of GPUs."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A run that goes on until it is stopped."""

    folder: Path
    process: LeashProcess
    prometheus: str


@pytest.fixture(scope="module")
def watched(
    tiny_model: Path, tiny_reward_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("watched")
    changes = CHANGES + LETTER_E + TASTE.format(reward_model=tiny_reward_model) + GOLD
    recipe = write_tiny_recipe(home / "watched.toml", changes, model=tiny_model, prompts=prompts_file)
    folder = home / "seen-live"
    with following(home / "prometheus") as prometheus:
        process = leash(
            *("train", recipe, "--run", folder),
            f"metrics.discovery_folder={home / 'prometheus' / 'discovery'}",
            log=home / "log",
        )
        process.wait_until(lambda: len(records(folder)) >= 4, DEADLINE_S)
        yield Watched(folder, process, prometheus)
        process.kill()


def test_prometheus_has_a_series_for_every_expression_of_every_dashboard(watched: Watched) -> None:
    time.sleep(SCRAPES_S)
    lacking = expressions_without_series(watched.prometheus, watched.folder.name)
    surprises = [expr for expr in lacking if not metrics_in(expr) & NOT_IN_THIS_RUN]
    assert surprises == []
    assert METRICS.keys() >= NOT_IN_THIS_RUN


def test_the_page_shows_it_as_it_goes_on(page: Page, serve: Callable[..., str], watched: Watched) -> None:
    page.goto(serve(watched.folder))
    reward = page.get_by_role("region", name="Reward", exact=True)
    expect(reward.get_by_role("row", name="reward gold")).to_be_visible()
    step = len(records(watched.folder))
    watched.process.wait_until(lambda: len(records(watched.folder)) >= step + 2, DEADLINE_S)
    expect(page.get_by_text(f"step {step + 2} of 100000")).to_be_visible()
    page.get_by_role("link", name="System").click()
    expect(page.get_by_role("row", name="rollout-0")).to_contain_text("serving")
    page.get_by_role("link", name="Rollouts").click()
    expect(page.get_by_text("colour tokens")).to_be_visible()


def test_stopped_it_leaves_its_figures_in_tensorboard_and_nothing_to_discover(watched: Watched) -> None:
    watched.process.terminate()
    ended = watched.process.wait(DEADLINE_S)
    assert "stopped after step" in ended.output
    assert watched.process.left_behind() == []
    found = EventAccumulator(str(watched.folder / "tensorboard"))
    found.Reload()
    rewards = found.Scalars("learning/reward/gold")
    assert [event.step for event in rewards] == [record["step"] for record in records(watched.folder)]
    discovery = watched.folder.parent / "prometheus" / "discovery"
    assert list(discovery.glob("*.json")) == []
