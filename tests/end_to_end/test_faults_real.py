"""One process of each kind is killed in a run on the real stack: it goes on, and accounts for everything.

Many more faults: `make chaos`.
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.chaos import (
    CHECKPOINT_EVERY,
    DEADLINE_S,
    ENDLESS,
    ENGINE,
    KINDS,
    Chaos,
    differences,
)
from tests.end_to_end.leash_process import leash, records
from tests.end_to_end.tiny_recipe import write_tiny_recipe

STRUCK = (ENGINE, "rollout stalled", "reward stalled for a moment", *KINDS)

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
    chaos.until(lambda: "rollout-2 serves" in (chaos.folder / "events.jsonl").read_text(encoding="utf-8"))
    chaos.until(lambda: order("status").count("serving") == 5)
    order("scale", "rollout=2")
    chaos.until(lambda: len(chaos.processes("rollout")) == 2)
    order("set", "kl_coef=0.07", "learning_rate=5e-4", "silence_s=12")
    order("pause")
    chaos.until(lambda: "paused" in order("status", "--json"))
    still = chaos.step
    time.sleep(3)
    assert chaos.step == still
    order("resume")
    chaos.until(lambda: chaos.step > still + 1)
    order("status")
    return said


def one_spaced(text: str) -> str:
    """A table without its widths."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def struck(tiny_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Struck:
    home = tmp_path_factory.mktemp("faults")
    recipe = write_tiny_recipe(home / "chaos.toml", ENDLESS, model=tiny_model, prompts=prompts_file)
    chance = random.Random(0)
    with Chaos(recipe, home / "run") as chaos:
        orders = give_orders(chaos)
        for kind in STRUCK:
            chaos.strike(kind, chance)
        orders["status of the last driver"] = chaos.order("status")
        output = chaos.stop()
    return Struck(home / "run", output, chaos, orders)


def test_a_live_run_takes_orders(struck: Struck) -> None:
    assert "kl.kl_coef 0.07 from step" in one_spaced(struck.orders["status"])
    assert [record["kl_coef"] for record in records(struck.folder)[:2]] == [0.05, 0.05]
    assert not (struck.folder / "control.json").exists(), "it went with the run"
    lines = struck.orders["status"].splitlines()
    assert any(line.startswith("rollout-0") for line in lines)
    assert not any(line.startswith("rollout-2") for line in lines), "it has left"
    events = (struck.folder / "events.jsonl").read_text(encoding="utf-8")
    life = [events.index(f"rollout-2 {what}") for what in ("joins", "serves", "left")]
    assert life == sorted(life)


def test_what_was_set_holds_from_its_step_on_in_every_driver(struck: Struck) -> None:
    """Also in steps that were done again, and after `--resume`, whose recipe.toml is as it was."""
    orders = [
        json.loads(line) for line in (struck.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    changes = [order["text"] for order in orders if order["kind"] == "set"]
    first = int(changes[0].partition("from step ")[2].partition(" ")[0])
    assert 1 < first < len(records(struck.folder))
    assert [(record["kl_coef"], record["learning_rate"]) for record in records(struck.folder)] == [
        (0.05, 1e-3) if record["step"] < first else (0.07, 5e-4) for record in records(struck.folder)
    ]
    status = one_spaced(struck.orders["status of the last driver"])
    assert "learner.learning_rate 0.0005 from step" in status
    assert "faults.silence_s 12 from step" in status


def test_the_run_gets_over_the_death_of_each_kind_of_process(struck: Struck) -> None:
    assert {kind: len(tally.recovery_s) for kind, tally in struck.chaos.tallies.items()} == dict.fromkeys(
        STRUCK, 1
    )


def test_who_waited_for_a_broken_engine_heard_why(struck: Struck) -> None:
    events = (struck.folder / "events.jsonl").read_text(encoding="utf-8")
    assert "rollout-0 died: the engine broke: RuntimeError: broken by the test" in events


def test_a_stalled_worker_was_noticed_by_its_silence_and_one_that_woke_in_time_lives(struck: Struck) -> None:
    deaths = [
        event["text"]
        for event in map(
            json.loads, (struck.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        )
        if event["kind"] == "worker" and " died: " in event["text"]
    ]
    silent = [death for death in deaths if "did not answer within" in death]
    assert [death for death in silent if death.startswith("rollout-")]
    assert not [death for death in silent if death.startswith("reward-")]


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
