"""What the dashboard reads from run folders: files that grow, break off or are damaged."""

import os
import shutil
from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.dashboard.json_lines import JsonLines
from orchestration.dashboard.progress import progress
from orchestration.dashboard.run_view import RunView, open_runs
from tests.orchestration.live_run import serving
from tests.orchestration.made_up_run import MadeUpRun


@pytest.fixture
def run(tmp_path: Path) -> MadeUpRun:
    return MadeUpRun(tmp_path / "a")


def records_of(run: MadeUpRun) -> JsonLines:
    return JsonLines(run.folder / "metrics.jsonl", {"step": int})


def test_a_file_that_is_not_there_yet_has_no_rows(run: MadeUpRun) -> None:
    records = records_of(run)
    records.refresh()
    assert records.rows() == []


def test_a_line_counts_once_it_has_its_end(run: MadeUpRun) -> None:
    records = records_of(run)
    run.text("metrics.jsonl", '{"step": 1}\n{"step"')
    records.refresh()
    assert records.rows() == [{"step": 1}]
    run.text("metrics.jsonl", ": 2}\n")
    records.refresh()
    assert records.rows() == [{"step": 1}, {"step": 2}]


def test_a_letter_cut_in_half_is_no_damage(run: MadeUpRun) -> None:
    records = records_of(run)
    line = '{"step": 1, "text": "ü"}\n'.encode()
    (run.folder / "metrics.jsonl").write_bytes(line[:22])
    records.refresh()
    assert records.rows() == []
    (run.folder / "metrics.jsonl").open("ab").write(line[22:])
    records.refresh()
    assert records.rows() == [{"step": 1, "text": "ü"}]


def test_a_reader_gets_what_it_does_not_have_yet(run: MadeUpRun) -> None:
    records = records_of(run)
    run.text("metrics.jsonl", '{"step": 1}\n')
    records.refresh()
    cursor, is_anew, rows = records.since(None)
    assert (is_anew, rows) == (True, [{"step": 1}])
    run.text("metrics.jsonl", '{"step": 2}\n')
    records.refresh()
    cursor, is_anew, rows = records.since(cursor)
    assert (is_anew, rows) == (False, [{"step": 2}])
    assert records.since(cursor)[1:] == (False, [])


def test_a_file_written_anew_as_by_a_resumed_run_is_read_anew(run: MadeUpRun) -> None:
    records = records_of(run)
    run.text("metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
    records.refresh()
    cursor, _, _ = records.since(None)
    other = run.folder / "metrics.jsonl.unfinished"
    other.write_text('{"step": 1}\n{"step": 2, "again": true}\n{"step": 3}\n')
    other.rename(run.folder / "metrics.jsonl")
    records.refresh()
    assert records.since(cursor)[1:] == (True, [{"step": 1}, {"step": 2, "again": True}, {"step": 3}])


def test_a_file_written_anew_in_the_same_place_and_longer_is_read_anew(run: MadeUpRun) -> None:
    """A file system may give the new file the number of the one that was removed."""
    records = records_of(run)
    run.text("metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
    records.refresh()
    cursor, _, _ = records.since(None)
    (run.folder / "metrics.jsonl").write_text('{"step": 7}\n{"step": 8}\n{"step": 9}\n')
    records.refresh()
    assert records.since(cursor)[1:] == (True, [{"step": 7}, {"step": 8}, {"step": 9}])


def test_a_file_that_is_cut_or_removed_is_read_anew(run: MadeUpRun) -> None:
    records = records_of(run)
    run.text("metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
    records.refresh()
    os.truncate(run.folder / "metrics.jsonl", len('{"step": 1}\n'))
    records.refresh()
    assert records.rows() == [{"step": 1}]
    (run.folder / "metrics.jsonl").unlink()
    records.refresh()
    assert records.rows() == []


def test_figures_that_are_no_number_are_missing(run: MadeUpRun) -> None:
    records = records_of(run)
    run.text("metrics.jsonl", '{"step": 1, "score_mean": NaN, "kl": -Infinity}\n')
    records.refresh()
    assert records.rows() == [{"step": 1, "score_mean": None, "kl": None}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken}", ":2: not a JSON object"),
        (b"[1, 2]", ":2: not a JSON object"),
        (b"\xff\xfe", ":2: not a JSON object"),
        (b"", ":2: not a JSON object"),
        (b'{"score_mean": 1}', ":2: its step is missing or wrong"),
        (b'{"step": "two"}', ":2: its step is missing or wrong"),
    ],
)
def test_a_damaged_line_is_named_each_time_and_what_is_before_it_kept(
    run: MadeUpRun, line: bytes, message: str
) -> None:
    (run.folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    records = records_of(run)
    for _ in range(2):
        with pytest.raises(UserError, match="metrics.jsonl" + message):
            records.refresh()
        assert records.rows() == [{"step": 1}]


def test_time_left_is_what_the_steps_that_remain_take_at_the_median() -> None:
    # The first step includes the start; a pause of 1000 s is one step of three.
    seconds = (100.0, 110.0, 1120.0, 1130.0)
    records = [{"step": step, "seconds_since_start": time_s} for step, time_s in enumerate(seconds, 1)]
    assert progress(records, 7) == {
        "step": 4,
        "steps": 7,
        "elapsed_s": 1130.0,
        "step_s": 10.0,
        "left_s": 30.0,
    }


def test_before_the_first_step_nothing_is_known_of_the_time() -> None:
    assert progress([], 4) == {"step": 0, "steps": 4, "elapsed_s": None, "step_s": None, "left_s": None}


def test_one_step_is_enough_for_a_first_guess() -> None:
    assert progress([{"step": 1, "seconds_since_start": 30.0}], 3)["left_s"] == 60.0


def test_a_dead_run_tells_how_far_it_came(run: MadeUpRun) -> None:
    run.step(1)
    view = RunView(run.folder, "a")
    view.records.refresh()
    status = view.status()
    assert (status["is_live"], status["state"], status["problem"]) == (False, "not running", None)
    assert status["progress"]["step"] == 1
    (run.folder / "summary.json").write_text("{}")
    assert view.status()["state"] == "finished"


def test_a_live_run_tells_its_workers(tmp_path: Path) -> None:
    with serving(tmp_path):
        status = RunView(tmp_path, "a").status()
    assert (status["is_live"], status["state"]) == (True, "training")
    assert status["workers"][0]["name"] == "rollout-0"


def test_damage_is_a_problem_of_the_status(run: MadeUpRun) -> None:
    run.text("metrics.jsonl", "{broken}\n")
    status = RunView(run.folder, "a").status()
    assert "metrics.jsonl" in status["problem"]


@pytest.mark.parametrize("damage", ["removed", "broken"])
def test_a_run_that_goes_away_while_it_is_watched_keeps_the_recipe_that_was_read(
    run: MadeUpRun, damage: str
) -> None:
    """Else the pages of all other runs that are watched beside it would end."""
    view = RunView(run.folder, "a")
    before = view.description()
    if damage == "removed":
        shutil.rmtree(run.folder)
    else:
        (run.folder / "recipe.toml").write_text("name = ")
    assert (view.steps, view.model, view.description()) == (8, None, before)
    assert view.status()["is_live"] is False


def test_the_recipe_is_told_as_keys_that_a_command_line_takes(run: MadeUpRun) -> None:
    (run.folder / "recipe.toml").write_text(
        'name = "a"\n[kl]\nkl_coef = 0.1\n[[rewards]]\nkind = "model"\nstop = ["x"]\n'
    )
    assert RunView(run.folder, "a").description()["recipe"] == [
        ["name", "a"],
        ["kl.kl_coef", "0.1"],
        ["rewards.0.kind", "model"],
        ["rewards.0.stop", '["x"]'],
    ]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [MadeUpRun(tmp_path / name).folder for name in ("x/run", "y/run", "other")]
    assert [view.name for view in open_runs(folders)] == ["x/run", "y/run", "other"]


@pytest.mark.parametrize("name", ["nothing", "empty", "damaged"])
def test_what_is_no_run_is_a_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    MadeUpRun(tmp_path / "damaged").text("recipe.toml", "[broken")
    with pytest.raises(UserError, match=name):
        open_runs([tmp_path / name])


def test_a_run_is_given_once(run: MadeUpRun) -> None:
    with pytest.raises(UserError, match="twice"):
        open_runs([run.folder, run.folder / "." / "samples" / ".."])
