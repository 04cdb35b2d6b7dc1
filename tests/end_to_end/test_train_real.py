"""`leash train` on a tiny random model, by subprocess and with every part real: vLLM, Ray, DeepSpeed.

Starting the workers of a run takes half a minute, so a few runs serve many tests.
"""

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.metrics.contract import metric_of
from core.metrics.registry import METRICS
from orchestration.alarm.config import AlarmLimits
from tests.end_to_end.leash_process import BIN, Ended, LeashProcess, leash, records
from tests.end_to_end.ray_cluster import RayCluster
from tests.end_to_end.tiny_recipe import LETTER_E, TASTE, write_tiny_recipe

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

STEPS = 10
STOP_AFTER = 4
DEADLINE_S = 240
"""For one run: twice what the slowest took on two busy cores."""

CHANGES = f"""\
[rollout]
workers = 2
group_size = 8

[kl]
kl_coef = 0.002
controller = "adaptive"
kl_target = 20.0

[learner]
world_size = 2
zero_stage = 2

[trainer]
steps = {STEPS}
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that went to its end."""

    folder: Path
    ended: Ended
    left_behind: list[str]
    live_metrics: str
    """What /metrics said while it ran."""

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return summary


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    return write_tiny_recipe(file, CHANGES, model=tiny_model, prompts=prompts_file)


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of most tests: two rollout workers, two learner ranks, to its end without a break."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    process = leash("train", recipe, "--run", folder, log=folder.with_suffix(".log"))
    process.wait_until(lambda: len(records(folder)) >= 2, DEADLINE_S)
    url = (folder / "metrics-url.txt").read_text(encoding="utf-8").strip()
    with urllib.request.urlopen(url, timeout=10) as response:
        live_metrics = response.read().decode()
    ended = process.wait(DEADLINE_S)
    return Finished(folder, ended, process.left_behind(), live_metrics)


@pytest.fixture(scope="module")
def resumed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, list[str], Finished]:
    """The same run, stopped by SIGTERM in the middle and resumed: how each part ended."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    process = leash("train", recipe, "--run", folder, log=folder.with_suffix(".log"))
    process.wait_until(lambda: len(records(folder)) >= STOP_AFTER, DEADLINE_S)
    process.terminate()
    stopped = process.wait(60)
    left = process.left_behind() + [name for name in ("summary.json", "model") if (folder / name).exists()]
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    left += [name for name in checkpoints if not name.startswith("step-") or "." in name]
    assert len(checkpoints) == 1, checkpoints
    process = leash("train", recipe, "--run", folder, "--resume", log=folder.with_suffix(".resumed.log"))
    ended = process.wait(DEADLINE_S)
    return stopped, left, Finished(folder, ended, process.left_behind(), "")


def test_it_ends_well_and_leaves_no_process_behind(run: Finished) -> None:
    assert run.ended.code == 0, run.ended.output[-4000:]
    assert run.left_behind == []
    assert "Traceback" not in run.ended.output


def test_the_reward_rises_far_above_noise(run: Finished) -> None:
    before, after = run.summary["reward_before"], run.summary["reward_after"]
    assert before["count"] == after["count"] == 20
    error = ((before["std"] ** 2 + after["std"] ** 2) / before["count"]) ** 0.5
    assert after["mean"] - before["mean"] > 4 * error
    scores = [record["score_mean"] for record in records(run.folder)]
    assert sum(scores[-3:]) > 1.5 * sum(scores[:3])


def test_the_summary_has_every_figure(run: Finished) -> None:
    summary = run.summary
    for name in ("reward_before", "reward_after"):
        assert summary[name].keys() == {"mean", "std", "count"}
    matched = summary["reward_at_matched_length"]
    assert matched["after"]["mean"] > matched["before"]["mean"]
    assert summary["kl_target"] == 20.0
    assert summary["kl_nats_per_sequence"] > 0
    assert 1 <= summary["completion_tokens_before"] <= 8
    assert 1 <= summary["completion_tokens_after"] <= 8
    assert summary["reward_model_pairwise_accuracy"] == {}  # a function is no reward model
    assert 0 < summary["seconds_per_step"] < summary["seconds_to_first_step"] < summary["seconds_total"]
    assert summary["tokens_per_second"] > 0
    assert 0 < summary["copy_s"] < summary["weight_push_s"] < summary["seconds_per_step"]
    assert summary["logprob_gap_max"] < 1e-3
    assert summary["probe_gap_max"] < 1e-3
    assert {"learner-0", "learner-1", "rollout-0", "rollout-1", "reference-0"} <= summary[
        "peak_memory_bytes"
    ].keys()
    assert all(size > 2**26 for size in summary["peak_memory_bytes"].values())
    assert summary["seed"] == 0
    assert {"leash", "ray", "torch", "deepspeed", "transformers"} <= summary["versions"].keys()


def test_metrics_are_served_while_it_runs(run: Finished) -> None:
    samples = dict(
        line.rsplit(" ", 1) for line in run.live_metrics.splitlines() if line and not line.startswith("#")
    )
    assert 2 <= float(samples["leash_steps_total"]) <= STEPS
    assert float(samples["leash_policy_version"]) == float(samples["leash_steps_total"])
    assert float(samples["leash_logprob_gap_max"]) < 1e-3
    assert float(samples['leash_reward{source="letter_e"}']) > 0
    assert float(samples['leash_worker_memory_bytes{worker="rollout-1"}']) > 2**26


OF_THE_RECORD_ALONE = {
    *("seconds_since_start", "prompt_tokens", "sampled_tokens", "tokens", "sampled_length"),
    *("rollout_s", "learn_s", "push_s", "loss_weight", "newly_sampled_tokens"),
}
"""Keys of a step's record that are no metric: parts of one, or a histogram's."""


def test_every_figure_of_a_step_is_a_declared_metric(run: Finished) -> None:
    keys = {key for record in records(run.folder) for key in record}
    assert {key for key in keys if metric_of(key, METRICS) is None} <= OF_THE_RECORD_ALONE


def test_every_worker_and_the_engines_themselves_are_seen(run: Finished) -> None:
    for worker in (
        "learner-0",
        "learner-1",
        "rollout-0",
        "rollout-1",
        "reference-0",
        "reward-letter_e-0",
        "driver",
    ):
        assert f'leash_worker_cpu_seconds_total{{worker="{worker}"}}' in run.live_metrics
        assert f"memory_{worker}_bytes" in records(run.folder)[-1]
    for engine in ("rollout-0", "rollout-1"):
        assert f'leash_engine_kv_cache_max_fraction{{worker="{engine}"}}' in run.live_metrics
        assert f'leash_engine_prefix_queries_total{{worker="{engine}"}}' in run.live_metrics
        assert re.search(rf'vllm:prompt_tokens_total{{.*worker="{engine}".*}} [1-9]', run.live_metrics)


def test_the_run_folder_holds_what_it_promises(run: Finished) -> None:
    assert [record["step"] for record in records(run.folder)] == list(range(1, STEPS + 1))
    assert {record["lag"] for record in records(run.folder)} == {0}
    for name in ("recipe.toml", "run.json", "heldout-before.jsonl", "heldout-after.jsonl", "before-after.md"):
        assert (run.folder / name).stat().st_size > 0, name
    samples = sorted((run.folder / "samples").iterdir())
    assert len(samples) == STEPS
    assert all(len(file.read_text(encoding="utf-8").splitlines()) == 32 for file in samples)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == [f"step-{STEPS:06d}"]
    assert not list(run.folder.rglob("*.unfinished"))


def test_both_rollout_workers_and_all_prompts_take_part(run: Finished) -> None:
    rows = [
        json.loads(line)
        for file in sorted((run.folder / "samples").iterdir())
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert len({row["prompt"] for row in rows}) == 20  # the training half, more than two epochs of it
    heldout = {
        json.loads(line)["prompt"]
        for line in (run.folder / "heldout-before.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert not heldout & {row["prompt"] for row in rows}


def test_the_saved_model_loads_in_transformers(run: Finished) -> None:
    auto: Any = AutoModelForCausalLM  # typed as if it always returned the model alone
    model, report = auto.from_pretrained(run.folder / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    text = AutoTokenizer.from_pretrained(run.folder / "model")("The film is", return_tensors="pt")
    assert model.generate(**text, max_new_tokens=3, do_sample=False).shape[1] > text["input_ids"].shape[1]


def test_sigterm_ends_a_run_cleanly_with_a_checkpoint(resumed: tuple[Ended, list[str], Finished]) -> None:
    stopped, left, _ = resumed
    assert stopped.code == 130, stopped.output[-4000:]
    assert "--resume" in stopped.output
    assert "Traceback" not in stopped.output
    assert left == []


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    run: Finished, resumed: tuple[Ended, list[str], Finished]
) -> None:
    *_, again = resumed
    assert again.ended.code == 0, again.ended.output[-4000:]
    assert again.left_behind == []
    assert [record["step"] for record in records(again.folder)] == list(range(1, STEPS + 1))
    for one, other in zip(records(run.folder), records(again.folder), strict=True):
        assert other["score_mean"] == pytest.approx(one["score_mean"], abs=1e-9)
        assert other["sampled_tokens"] == one["sampled_tokens"]
        assert other["kl_coef"] == pytest.approx(one["kl_coef"], rel=1e-6)
        for name in ("policy_loss", "kl_nats_per_sequence", "gradient_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (one["step"], name)
    assert again.summary["reward_before"] == run.summary["reward_before"]
    assert again.summary["reward_after"]["mean"] == pytest.approx(
        run.summary["reward_after"]["mean"], abs=1e-6
    )


def test_ppo_trains_a_value_model_from_the_reward_model(
    run: Finished, recipe: Path, tiny_reward_model: Path, tmp_path: Path
) -> None:
    """And its policy is what the first run saved: vLLM loads it too. After a break it goes on with two learner
    ranks and ZeRO-2 in the place of one rank without."""
    ppo = recipe.with_name("ppo.toml")
    rewards = LETTER_E + TASTE.format(reward_model=tiny_reward_model)
    ppo.write_text(f'base = "{recipe.name}"\n{rewards}', encoding="utf-8")
    settings = (
        *("train", ppo, 'algorithm={kind = "ppo", num_minibatches = 2}'),
        *(f"model.path={run.folder / 'model'}", "rollout.workers=1", "trainer.steps=3"),
        *("kl.kl_target=none", "kl.controller=fixed", "trainer.max_lag=1", "--run", tmp_path / "run"),
    )
    process = leash(*settings, "learner.world_size=1", "learner.zero_stage=0", log=tmp_path / "log")
    process.wait_until(lambda: len(records(tmp_path / "run")) >= 1, DEADLINE_S)
    process.terminate()
    assert process.wait(60).code == 130
    process = leash(*settings, "--resume", log=tmp_path / "resumed.log")
    ended = process.wait(DEADLINE_S)
    assert ended.code == 0, ended.output[-4000:]
    assert process.left_behind() == []
    saved = tmp_path / "run" / "checkpoints" / "step-000003" / "learner.json"
    assert json.loads(saved.read_text(encoding="utf-8"))["shape"] == {
        "world_size": 2,
        "zero_stage": 2,
        "networks": ["policy", "value_model"],
    }
    assert leash("verify", tmp_path / "run", log=tmp_path / "verify.log").wait(60).code == 0
    found = records(tmp_path / "run")
    assert [record["step"] for record in found] == [1, 2, 3]
    assert all(record["value_loss"] > 0 and record["value_gradient_norm"] > 0 for record in found)
    assert {record["lag"] for record in found} <= {0, 1}
    # With a lag the behavior log-probs are of an older policy, so only the first step compares like with like.
    assert found[0]["logprob_gap_max"] < 1e-3
    assert all(record["reward_taste"] != 0 for record in found)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["rewards_by_source"].keys() == {"letter_e", "taste"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(tmp_path_factory.mktemp("ray"), num_cpus=3) as cluster:
        yield cluster


def test_a_ray_job_does_the_same(recipe: Path, cluster: RayCluster, tmp_path: Path) -> None:
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    train = [
        "leash",
        "train",
        str(recipe),
        "trainer.steps=2",
        "rollout.workers=1",
        "--run",
        str(tmp_path / "run"),
    ]
    process = LeashProcess([*submit, "--", *train], tmp_path / "log", environment=cluster.settings)
    ended = process.wait(DEADLINE_S)
    assert ended.code == 0, ended.output[-4000:]
    assert "succeeded" in ended.output
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["logprob_gap_max"] < 1e-3
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_job_with_bad_input_fails_with_the_same_message(
    recipe: Path, cluster: RayCluster, tmp_path: Path
) -> None:
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    train = ["leash", "train", str(recipe), "learner.resources.num_cpus=40", "--run", str(tmp_path / "run")]
    process = LeashProcess([*submit, "--", *train], tmp_path / "log", environment=cluster.settings)
    ended = process.wait(90)
    assert ended.code != 0
    assert "the cluster has 3 CPU" in ended.output


def test_without_an_address_a_run_has_a_ray_of_its_own(
    recipe: Path, cluster: RayCluster, tmp_path: Path
) -> None:
    """Not that of whoever else runs one on this machine, with other resources and another token."""
    process = leash(
        *("train", recipe, "learner.resources.num_cpus=4000", "--run", tmp_path / "run"),
        log=tmp_path / "log",
        environment=cluster.settings,
    )
    ended = process.wait(90)
    assert ended.code == 2, ended.output[-4000:]
    assert "asks Ray for 8000.7 CPU" in ended.output
    assert "the cluster has 3 CPU" not in ended.output


def test_an_alarm_ends_a_run_and_leaves_the_checkpoint_from_before_it(recipe: Path, tmp_path: Path) -> None:
    """With limits that no change is too small for, by which every policy that learns is a cheat."""
    limits = [f"alarm.limits.{name}=1e-6" for name in AlarmLimits.model_fields]
    process = leash(
        *("train", recipe, "--run", tmp_path / "run", "trainer.checkpoint_every=1", "rollout.workers=1"),
        *("learner.world_size=1", "learner.zero_stage=0", "alarm.action=stop", "alarm.deviations=0.001"),
        *("alarm.patience_steps=1", *limits),
        log=tmp_path / "log",
    )
    ended = process.wait(DEADLINE_S)
    assert ended.code == 1, ended.output[-4000:]
    assert process.left_behind() == []
    last = len(records(tmp_path / "run"))
    assert f"error: stopped by the alarm after step {last}: " in ended.output
    kept = [checkpoint.name for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert kept == ([f"step-{last - 1:06d}"] if last > 1 else [])
