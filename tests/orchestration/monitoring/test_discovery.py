"""The file by which Prometheus finds a run, and that it goes when the run ends and stays when it fails."""

import asyncio
import json
from pathlib import Path

import pytest

from core.errors import NoWorkerLeft, OverOptimized, RewardError, UserError
from orchestration.monitoring.discovery import announced, discovery_file
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe

URL = "http://127.0.0.1:40001/metrics"


def test_a_run_is_announced_while_it_lives(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "discovery"
    with announced(folder, url=URL, run=tmp_path / "a", recipe="movie-reviews"):
        (file,) = folder.iterdir()
        assert json.loads(file.read_text()) == [
            {"targets": ["127.0.0.1:40001"], "labels": {"run": "a", "recipe": "movie-reviews"}}
        ]
        assert file.match("a-*.json")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "is_missed"),
    [
        (KeyboardInterrupt(), False),
        (asyncio.CancelledError(), False),
        (UserError("no such file"), False),
        (RewardError("reward x: returned NaN"), True),
        (NoWorkerLeft("no rollout worker is left"), True),
        (OverOptimized("stopped by the alarm"), True),
        (OSError("no space left on device"), True),
    ],
)
def test_a_run_that_fails_is_missed_and_one_that_is_told_to_stop_is_not(
    tmp_path: Path, error: BaseException, is_missed: bool
) -> None:
    with (
        pytest.raises(type(error)),
        announced(tmp_path / "d", url=URL, run=tmp_path / "a", recipe="r"),
    ):
        raise error
    assert len(list((tmp_path / "d").iterdir())) == is_missed
    with announced(tmp_path / "d", url=URL, run=tmp_path / "a", recipe="r"):
        assert len(list((tmp_path / "d").iterdir())) == 1
    assert list((tmp_path / "d").iterdir()) == [], "resumed, and ended"


def test_a_resumed_run_takes_the_file_that_it_left_when_it_was_killed(tmp_path: Path) -> None:
    left = discovery_file(tmp_path, tmp_path / "runs" / "a")
    left.write_text('[{"targets": ["127.0.0.1:40000"], "labels": {"run": "a", "recipe": "r"}}]')
    with announced(tmp_path, url=URL, run=tmp_path / "runs" / ".." / "runs" / "a", recipe="r"):
        assert list(tmp_path.glob("*.json")) == [left]
        assert json.loads(left.read_text())[0]["targets"] == ["127.0.0.1:40001"]


def test_runs_of_the_same_name_in_different_places_do_not_share_a_file(tmp_path: Path) -> None:
    with (
        announced(tmp_path, url=URL, run=tmp_path / "x" / "a", recipe="r"),
        announced(tmp_path, url="http://127.0.0.1:40002/metrics", run=tmp_path / "y" / "a", recipe="r"),
    ):
        assert len(list(tmp_path.iterdir())) == 2


def test_who_gets_the_address_of_a_killed_run_ends_its_file(tmp_path: Path) -> None:
    killed, other, foreign = (
        discovery_file(tmp_path, tmp_path / name) for name in ("killed", "other", "foreign")
    )
    killed.write_text('[{"targets": ["127.0.0.1:40001"], "labels": {"run": "killed"}}]')
    other.write_text('[{"targets": ["127.0.0.1:4000"], "labels": {"run": "other"}}]')
    foreign.write_text('{"targets": "127.0.0.1:40001"')
    with announced(tmp_path, url=URL, run=tmp_path / "a", recipe="r"):
        assert set(tmp_path.iterdir()) == {other, foreign, discovery_file(tmp_path, tmp_path / "a")}


@pytest.mark.parametrize(("with_folder", "url"), [(False, URL), (True, None)])
def test_without_a_folder_or_an_address_nothing_is_written(
    tmp_path: Path, with_folder: bool, url: str | None
) -> None:
    with announced(tmp_path / "d" if with_folder else None, url=url, run=tmp_path / "a", recipe="r"):
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="metrics.discovery_folder = .*file: cannot be written to .*choose a"),
        announced(tmp_path / "file", url=URL, run=tmp_path / "a", recipe="r"),
    ):
        pass


def test_the_recipes_folder_holds_from_everywhere(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('base = "movie-reviews"\n[metrics]\ndiscovery_folder = "found"\n')
    assert load_recipe(recipe).metrics.discovery_folder == str(tmp_path / "found")


def test_a_folder_without_an_address_to_write_there_is_a_contradiction() -> None:
    overrides = ["metrics.discovery_folder=/tmp/x", "metrics.port=none"]
    with pytest.raises(UserError, match="metrics.discovery_folder .*metrics.port = 0 for a free port"):
        load_recipe(find_recipe("movie-reviews"), overrides)
