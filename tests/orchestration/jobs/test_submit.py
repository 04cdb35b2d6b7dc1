"""`leash submit` over a cluster in memory; `test_cluster_real.py` holds Ray's to the same contract."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError, WorkerError
from orchestration import cli
from orchestration.jobs import job as jobs_module
from orchestration.jobs import submit
from orchestration.jobs.job import run_job
from orchestration.jobs.submit import entrypoint
from orchestration.jobs.working_directory import MAX_BYTES, pack
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe
from tests.orchestration.jobs.job_client import FakeInfo, FakeJobs, check_contract

SUCCEEDED = FakeInfo("SUCCEEDED", "Job finished successfully.", 0)
FAILED = FakeInfo("FAILED", "Job entrypoint command failed with exit code 1", 1)
RECIPE = load_recipe(find_recipe("movie-reviews"))


@pytest.fixture(autouse=True)
def _no_waiting_and_known_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = map(str, itertools.count(1))
    monkeypatch.setattr(jobs_module, "_POLL_S", 0.0)
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: next(numbers))


class Output:
    """What the user sees."""

    def __init__(self) -> None:
        self.log = ""
        self.said: list[str] = []

    def write(self, text: str) -> None:
        self.log += text


def followed(jobs: FakeJobs, folder: Path, retries: int = 0) -> tuple[int, Output]:
    output = Output()
    code = run_job(
        jobs,
        folder,
        command="leash train",
        address="http://head:8265",
        retries=retries,
        write=output.write,
        say=output.said.append,
    )
    return code, output


def test_a_job_that_succeeds_gives_zero_and_its_log(tmp_path: Path) -> None:
    code, output = followed(FakeJobs([SUCCEEDED], logs=["step 1\n", "step 2\n"]), tmp_path, retries=3)
    assert (code, output.log) == (0, "step 1\nstep 2\n")
    assert "ray job stop --address http://head:8265 leash-1" in output.said[0]


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (FAILED, 1),
        (FakeInfo("FAILED", "bad input", 2), 2),
        (FakeInfo("FAILED", "Job supervisor actor could not be scheduled", None), 1),
        (FakeInfo("FAILED", "killed", -9), 1),
        (FakeInfo("STOPPED", "Job was intentionally stopped.", None), 130),
    ],
)
def test_the_exit_code_is_the_jobs(tmp_path: Path, info: FakeInfo, code: int) -> None:
    assert followed(FakeJobs([info]), tmp_path)[0] == code


def test_a_failed_job_goes_on_with_the_same_command(tmp_path: Path) -> None:
    jobs = FakeJobs([FAILED, FAILED, SUCCEEDED])
    code, output = followed(jobs, tmp_path, retries=2)
    assert code == 0
    assert jobs.entrypoints == ["leash train"] * 3
    assert "trying again from the last checkpoint (2 of 2)" in output.said


def test_retries_come_to_an_end(tmp_path: Path) -> None:
    jobs = FakeJobs([FAILED])
    assert followed(jobs, tmp_path, retries=2)[0] == 1
    assert len(jobs.entrypoints) == 3


@pytest.mark.parametrize("info", [FakeInfo("FAILED", "bad input", 2), FakeInfo("STOPPED")])
def test_what_no_retry_mends_is_not_tried_again(tmp_path: Path, info: FakeInfo) -> None:
    jobs = FakeJobs([info])
    followed(jobs, tmp_path, retries=5)
    assert len(jobs.entrypoints) == 1


def test_a_log_whose_connection_breaks_is_written_once(tmp_path: Path) -> None:
    def break_connection() -> None:
        raise ConnectionError("closed")

    logs = ["one\n", "two\n", "three\n"]
    jobs = FakeJobs([SUCCEEDED], logs=logs, on_tail=[lambda: None, break_connection])
    code, output = followed(jobs, tmp_path)
    assert (code, output.log) == (0, "one\ntwo\nthree\n")


def test_a_cluster_that_is_gone_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(FakeJobs):
        def get_job_info(self, job_id: str) -> FakeInfo:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(jobs_module, "_LOST_AFTER_S", -1.0)
    with pytest.raises(WorkerError, match="the cluster of leash-1 has not answered for .*: no route to host"):
        followed(Gone([SUCCEEDED]), tmp_path)


def test_a_cluster_that_has_just_started_is_asked_again(tmp_path: Path) -> None:
    class Starting(FakeJobs):
        asked = 0

        def submit_job(self, **options: Any) -> str:
            self.asked += 1
            if self.asked < 3:
                raise RuntimeError("No available agent to submit job")
            return super().submit_job(**options)

    jobs = Starting([SUCCEEDED])
    assert followed(jobs, tmp_path)[0] == 0
    assert jobs.jobs == ["leash-1"]


def test_a_job_whose_answer_was_lost_is_not_started_twice(tmp_path: Path) -> None:
    class Deaf(FakeJobs):
        def submit_job(self, **options: Any) -> str:
            super().submit_job(**options)
            raise ConnectionError("closed")

    jobs = Deaf([SUCCEEDED])
    assert followed(jobs, tmp_path)[0] == 0
    assert jobs.jobs == ["leash-1"]


def test_a_cluster_that_takes_no_job_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FakeJobs):
        def submit_job(self, **options: Any) -> str:
            raise RuntimeError("no")

    monkeypatch.setattr(jobs_module, "_TAKES_JOBS_S", -1.0)
    with pytest.raises(WorkerError, match="the cluster takes no job: no"):
        followed(Full([SUCCEEDED]), tmp_path)


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    jobs = FakeJobs([SUCCEEDED], on_tail=[interrupt])
    code, output = followed(jobs, tmp_path, retries=3)
    assert (code, len(jobs.entrypoints)) == (130, 1)
    assert output.said[-1] == (
        "leash-1 goes on; follow it: ray job logs --follow --address http://head:8265 leash-1; "
        "stop it: ray job stop --address http://head:8265 leash-1"
    )


def test_the_command_starts_the_run_or_goes_on_with_it() -> None:
    assert entrypoint(Path("/runs/my run")) == (
        "python -m orchestration.cli train recipe.toml --run '/runs/my run' --resume-or-start"
    )


def test_a_job_brings_the_sources_the_recipe_and_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("def short(prompts, completions): ...\n", encoding="utf-8")
    folder = tmp_path / "packed"
    folder.mkdir()
    pack(RECIPE, [tmp_path / "my_rewards.py"], folder)
    assert {path.name for path in folder.iterdir()} == {
        *("core", "actors", "learner", "orchestration"),
        *("recipe.toml", "my_rewards.py"),
    }
    assert load_recipe(folder / "recipe.toml") == RECIPE
    assert (folder / "orchestration" / "cli.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 2 * 2**20


def test_a_large_file_stays_out_of_a_job(tmp_path: Path) -> None:
    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    folder = tmp_path / "packed"
    folder.mkdir()
    with pytest.raises(UserError, match="at most 20 MiB along, .* most of it weights.safetensors"):
        pack(RECIPE, [tmp_path / "weights.safetensors"], folder)
    assert not (folder / "weights.safetensors").exists()


def test_what_is_missing_or_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    for include, problem in (
        ("nowhere", "no such file or folder"),
        ("core", "core is packed already; rename it"),
    ):
        folder = tmp_path / f"packed-{include}"
        folder.mkdir()
        with pytest.raises(UserError, match=problem):
            pack(RECIPE, [tmp_path / include], folder)


def test_a_folder_brings_no_keys_and_no_links_to_other_folders(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "rewards.py").write_text("", encoding="utf-8")
    (mine / ".env").write_text("WANDB_API_KEY=secret\n", encoding="utf-8")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    pack(RECIPE, [mine], tmp_path / "first")
    assert [path.name for path in (tmp_path / "first" / "mine").iterdir()] == ["rewards.py"]
    (mine / "again").symlink_to(mine)
    with pytest.raises(UserError, match="mine/again is a link to a folder"):
        pack(RECIPE, [mine], tmp_path / "second")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    jobs = FakeJobs([SUCCEEDED])
    monkeypatch.setattr(submit, "_connect", lambda address: jobs)
    return jobs


SUBMIT = ["submit", "movie-reviews", "--address", "http://head:8265"]


def test_an_address_that_is_none_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "movie-reviews", "--address", "foo", "--run", "/runs/a"]) == 2
    assert "--address foo: no Ray dashboard takes jobs there: " in capsys.readouterr().err


def test_the_command_follows_the_job(jobs: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SUBMIT, "--run", "/runs/a", "kl.kl_coef=0.2"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert "recipe.toml" in jobs.packed[0]
    assert jobs.entrypoints == [
        "python -m orchestration.cli train recipe.toml --run /runs/a --resume-or-start"
    ]


def test_without_waiting_the_command_prints_the_id(
    jobs: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SUBMIT, "--run", "/runs/a", "--no-wait"]) == 0
    assert capsys.readouterr().out == "leash-1\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--run", "runs/a"], "--run runs/a: is a path on the cluster; give an absolute one"),
        (["--run", "/runs/a", "--retries", "-1"], "--retries -1: must be 0 or more"),
        (["--run", "/runs/a", "kl.kl_coef=-1"], "kl.kl_coef"),
    ],
)
def test_bad_input_submits_nothing(
    jobs: FakeJobs, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert cli.main([*SUBMIT, *words]) == 2
    assert problem in capsys.readouterr().err
    assert jobs.entrypoints == []


def test_the_fake_keeps_the_contract(tmp_path: Path) -> None:
    check_contract(FakeJobs([FakeInfo("FAILED", "exit code 3", 3)], logs=["one\n", "two\n"]), tmp_path)
