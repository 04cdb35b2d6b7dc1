"""A run on two Ray nodes that share no memory, as two machines: learner ranks and rollout workers on both."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.leash_process import leash, records
from tests.end_to_end.ray_cluster import RayCluster, may_have_own_memory

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

DEADLINE_S = 400
RECIPE = """\
name = "two-nodes"
seed = 3

[model]
path = "{model}"
max_model_len = 64

[prompts]
kind = "jsonl"
path = "{prompts}"
heldout_fraction = 0.5

[[rewards]]
kind = "function"
name = "letter_e"
function = "tests.end_to_end.reward_functions:letter_e"

[rollout]
workers = 2
group_size = 4
max_new_tokens = 8
resources = {{ num_cpus = 0.5, threads = 1 }}    # beside a learner rank there is room for one

[reference]
resources = {{ num_cpus = 0.2, threads = 1 }}

[algorithm]
kind = "rloo"

[learner]
world_size = 2
zero_stage = 2
learning_rate = 1e-3
resources = {{ num_cpus = 1.2, threads = 1 }}    # two do not fit on a node of two

[trainer]
steps = 3
prompts_per_step = 4
heldout_prompts = 10
"""


@pytest.mark.skipif(not may_have_own_memory(), reason="needs the right to mount, to keep two nodes apart")
def test_learner_and_rollout_workers_on_two_nodes(
    tiny_model: Path, prompts_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tiny_model, prompts=prompts_file), encoding="utf-8")
    folder = tmp_path / "run"
    with RayCluster(tmp_path, num_cpus=2) as cluster:
        cluster.add_node(num_cpus=2, own_memory=True)
        ended = leash(
            *("train", recipe, "--run", folder, "--address", cluster.address),
            log=tmp_path / "log",
            environment=cluster.settings,
        ).wait(DEADLINE_S)
    assert ended.code == 0, ended.output[-4000:]
    steps = records(folder)
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert all(record["probe_gap"] < 1e-3 for record in steps), "of all workers: both took every version"
    assert max(record["logprob_gap_max"] for record in steps) < 1e-3
    memory = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
    assert {"learner-0", "learner-1", "rollout-0", "rollout-1"} <= memory.keys()
