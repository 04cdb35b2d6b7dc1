"""Jobs and nodes of a real Ray cluster; one job is a training run of tiny models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from orchestration.jobs import submit
from orchestration.jobs.job import run_job
from tests.end_to_end import reward_functions
from tests.end_to_end.chaos import DEADLINE_S, ENDLESS
from tests.end_to_end.leash_process import Ended, LeashProcess, leash, records
from tests.end_to_end.ray_cluster import RayCluster, with_other_torch
from tests.end_to_end.tiny_recipe import LETTER_E, write_tiny_recipe
from tests.orchestration.jobs.job_client import check_contract

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]

JOIN = """
import sys
from core.errors import UserError
from orchestration.cluster.launch import joined
try:
    with joined(sys.argv[1]):
        print("joined")
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(tmp_path_factory.mktemp("ray"), num_cpus=1) as cluster:
        yield cluster


@pytest.fixture
def as_user(cluster: RayCluster) -> Iterator[None]:
    """This process may use the cluster. Ray remembers the token that it found first: here, and in later tests."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in cluster.settings.items():
            environment.setenv(name, value)
        reset_auth_token_state()
        yield
    reset_auth_token_state()


@pytest.mark.usefixtures("as_user")
def test_rays_jobs_keep_the_contract(cluster: RayCluster, tmp_path: Path) -> None:
    client = submit._connect(cluster.dashboard)
    run_job(client, tmp_path, command="true", address="", retries=0, write=print, say=print)  # it takes jobs
    check_contract(client, tmp_path)


@pytest.mark.usefixtures("as_user")
def test_a_job_is_tried_again_in_what_the_first_try_left(cluster: RayCluster, tmp_path: Path) -> None:
    """The second try finds the folder of the first, as `--resume-or-start` would."""
    folder, run = tmp_path / "packed", tmp_path / "run"
    folder.mkdir()
    (folder / "try.py").write_text(
        "import pathlib, sys\n"
        "run = pathlib.Path(sys.argv[1])\n"
        "there = run.exists()\n"
        "run.mkdir(exist_ok=True)\n"
        "print('resumed' if there else 'started')\n"
        "sys.exit(0 if there else 1)\n",
        encoding="utf-8",
    )
    log: list[str] = []
    code = run_job(
        submit._connect(cluster.dashboard),
        folder,
        command=f"python try.py {run}",
        address=cluster.dashboard,
        retries=3,
        write=log.append,
        say=print,
    )
    written = [line for line in "".join(log).splitlines() if line in ("started", "resumed")]
    assert (code, written) == (0, ["started", "resumed"])


@pytest.mark.timeout(600)
def test_a_submitted_recipe_is_trained(
    cluster: RayCluster, tiny_model: Path, prompts_file: Path, tmp_path: Path
) -> None:
    """With a module of rewards that it brings along. What no retry mends is not tried again."""
    rewards = Path(reward_functions.__file__)
    changes = LETTER_E.replace(reward_functions.__name__, rewards.stem) + ENDLESS
    recipe = write_tiny_recipe(tmp_path / "recipe.toml", changes, model=tiny_model, prompts=prompts_file)

    def submit(run: str, *overrides: str) -> Ended:
        options: list[str | Path] = ["--address", cluster.dashboard, "--run", tmp_path / run]
        options += ["--include", rewards, "--retries", "1"]
        return leash(
            "submit",
            recipe,
            "trainer.steps=2",
            *overrides,
            *options,
            log=tmp_path / f"{run}.log",
            environment=cluster.settings,
        ).wait(DEADLINE_S)

    trained = submit("run")
    assert trained.code == 0, trained.output[-4000:]
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2]
    refused = submit("refused", "learner.resources.num_cpus=7")
    assert refused.code == 2, refused.output[-4000:]
    assert refused.output.count("submitted leash-") == 1
    assert "but the cluster has 1 CPU" in refused.output


def test_a_node_of_another_version_is_named(cluster: RayCluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, environment=with_other_torch(tmp_path))
    join = LeashProcess(
        ["python", "-c", JOIN, cluster.address], tmp_path / "log", environment=cluster.settings
    )
    assert "torch 0.0.1 (here 2.13.0)" in join.wait(90).output
