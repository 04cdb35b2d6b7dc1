"""One process of each kind is killed in a run on the real stack: it goes on, and accounts for everything.

Many more faults: `make chaos`.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.chaos import (
    CHECKPOINT_EVERY,
    DEADLINE_S,
    KINDS,
    Chaos,
    differences,
    write_recipe,
)
from tests.end_to_end.leash_process import leash, records

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Struck:
    """What is left of a run whose processes were killed."""

    folder: Path
    output: str
    """Of the last driver."""
    chaos: Chaos
    orders: dict[str, str]
    """What `leash` said to each order that the run was given before."""


def give_orders(chaos: Chaos) -> dict[str, str]:
    """Scale a live run up and down, change a setting, let it stand still and go on."""
    said: dict[str, str] = {}

    def order(command: str, *arguments: str) -> str:
        said[command] = chaos.order(command, *arguments)
        return said[command]

    order("scale", "rollout=3")
    chaos.until(lambda: len(chaos.processes("rollout")) == 3)
    while order("status").count("serving") < 5:
        time.sleep(1)
    order("scale", "rollout=2")
    chaos.until(lambda: len(chaos.processes("rollout")) == 2)
    order("set", "kl_coef=0.07")
    order("pause")
    chaos.until(lambda: "paused" in order("status", "--json"))
    still = chaos.step
    time.sleep(3)
    assert chaos.step == still
    order("resume")
    chaos.until(lambda: chaos.step > still + 1)
    order("status")
    return said


@pytest.fixture(scope="module")
def struck(tiny_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Struck:
    home = tmp_path_factory.mktemp("faults")
    recipe = write_recipe(home / "chaos.toml", model=tiny_model, prompts=prompts_file)
    chance = random.Random(0)
    with Chaos(recipe, home / "run") as chaos:
        orders = give_orders(chaos)
        for kind in KINDS:
            chaos.strike(kind, chance)
        output = chaos.stop()
    return Struck(home / "run", output, chaos, orders)


def test_a_live_run_takes_orders(struck: Struck) -> None:
    assert "kl_coef  0.07" in struck.orders["status"]
    assert [record["kl_coef"] for record in records(struck.folder)[:2]] == [0.05, 0.05]
    assert not (struck.folder / "control.json").exists(), "it went with the run"
    lines = struck.orders["status"].splitlines()
    assert any(line.startswith("rollout-0") for line in lines)
    assert not any(line.startswith("rollout-2") for line in lines), "it has left"
    events = (struck.folder / "events.jsonl").read_text(encoding="utf-8")
    assert 0 < events.index("rollout-2 joins") < events.index("rollout-2 left")


def test_the_run_gets_over_the_death_of_each_kind_of_process(struck: Struck) -> None:
    assert {kind: len(tally.recovery_s) for kind, tally in struck.chaos.tallies.items()} == dict.fromkeys(
        KINDS, 1
    )


def test_every_step_is_there_once_and_in_order(struck: Struck) -> None:
    steps = [record["step"] for record in records(struck.folder)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > CHECKPOINT_EVERY
    assert f"stopped after step {len(steps)}" in struck.output


def test_steps_that_were_done_again_came_out_the_same_bit_for_bit(struck: Struck) -> None:
    assert struck.chaos.differences == []
    assert struck.chaos.tallies["driver"].redone_tokens + struck.chaos.tallies["learner"].redone_tokens > 0


def test_the_learner_alone_makes_the_same_updates_again(struck: Struck, tmp_path: Path) -> None:
    """From the journal, although drivers that wrote it were killed, and kl_coef was set in flight."""
    again = tmp_path / "again"
    ended = leash("learn", struck.folder, again, log=tmp_path / "log").wait(DEADLINE_S)
    assert ended.code == 0, ended.output
    assert len(records(again)) == len(records(struck.folder))
    assert list(differences(records(struck.folder), records(again))) == []
    assert (again / "model" / "model.safetensors").is_file()


def test_engine_and_learner_agreed_in_every_step(struck: Struck) -> None:
    """Also after a worker or the learner was replaced."""
    assert max(record["logprob_gap_max"] for record in records(struck.folder)) < 1e-3
    assert max(record["probe_gap"] for record in records(struck.folder) if "probe_gap" in record) < 1e-3


def test_the_account_of_every_trajectory_is_clean(struck: Struck, tmp_path: Path) -> None:
    ended = leash("verify", struck.folder, log=tmp_path / "log").wait(DEADLINE_S)
    assert ended.code == 0, ended.output
    exported = tmp_path / "trajectories.jsonl"
    assert leash("export", struck.folder, exported, log=tmp_path / "log2").wait(DEADLINE_S).code == 0
    assert len(exported.read_text(encoding="utf-8").splitlines()) >= 16 * len(records(struck.folder))
