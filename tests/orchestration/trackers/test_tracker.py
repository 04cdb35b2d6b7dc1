"""Names, tables and settings that all trackers share, and what is refused before a run starts."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from core.errors import UserError
from core.metrics.registry import METRICS
from orchestration.trackers import opening
from orchestration.trackers.config import MlflowConfig, TrackersConfig, WandbConfig
from orchestration.trackers.opening import flat_settings, require_trackers
from orchestration.trackers.tracker import figures_of, numbers_of, table_of


def test_a_figure_is_called_by_its_dashboard_its_metric_and_its_labels() -> None:
    record = {
        "step": 4,
        "reward_human_ratings": 0.5,
        "kl_nats_per_sequence": 1.5,
        "kl_k3_nats_per_token": 0.25,
        "clip_fraction_low": 0.125,
        "wait_batch_s": 2.0,
        "not_a_metric": 1.0,
        "lag": "two",
    }
    assert figures_of(record) == {
        "throughput/policy_version": 4.0,
        "learning/reward/human_ratings": 0.5,
        "learning/kl_nats_per_sequence": 1.5,
        "learning/kl_nats_per_token/k3": 0.25,
        "learning/clip_fraction/low": 0.125,
        "throughput/wait_seconds/batch": 2.0,
    }


def test_no_name_is_the_folder_of_another() -> None:
    """MLflow keeps a file for each name, so that a name cannot be a folder as well."""
    keys = [
        metric.record.replace("{" + label + "}", value)
        for metric in METRICS.values()
        if metric.record is not None
        for label in metric.labels or ("",)
        for value in metric.values or ("x",)
    ]
    names = sorted(figures_of(dict.fromkeys(keys, 1.0)))
    assert len(names) == len(set(keys)) > 60
    assert not [(one, other) for one in names for other in names if other.startswith(f"{one}/")]


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4, 5, 6])]
)
def test_samples_are_spread_over_the_step(count: int, chosen: list[int]) -> None:
    rows = [
        {"prompt": "p", "completion": "c", "score": index, "rewards": {}, "kl_nats": 0} for index in range(7)
    ]
    assert [row[2] for row in table_of(rows, count).rows] == chosen


def test_a_reward_that_only_some_rows_have_is_left_empty_in_the_others() -> None:
    rows = [
        {"prompt": "p", "completion": "c", "score": 1.0, "rewards": {"a": 1.0}, "kl_nats": 0.0},
        {"prompt": "p", "completion": "c", "score": 2.0, "rewards": {"b": 2.0}, "kl_nats": 0.0},
    ]
    table = table_of(rows, 2)
    assert table.columns == ("prompt", "completion", "score", "reward/a", "reward/b", "kl_nats")
    assert table.rows == (("p", "c", 1.0, 1.0, None, 0.0), ("p", "c", 2.0, None, 2.0, 0.0))


def test_numbers_of_a_summary_are_found_at_any_depth() -> None:
    summary = {"steps": 2, "name": "a", "score": {"before": {"mean": 0.5}, "none": None}}
    assert numbers_of(summary) == {"summary/steps": 2.0, "summary/score/before/mean": 0.5}


def test_settings_have_a_value_for_every_dotted_key() -> None:
    recipe: Mapping[str, object] = {
        "name": "a",
        "trainer": {"steps": 2, "best_of": None},
        "rewards": [{"name": "x", "weight": 0.5}, {"name": "y", "path": Path("m")}],
        "rollout": {"stop": ["a", "b"]},
    }
    assert flat_settings(recipe) == {
        "name": "a",
        "trainer.steps": 2,
        "trainer.best_of": None,
        "rewards.0.name": "x",
        "rewards.0.weight": 0.5,
        "rewards.1.name": "y",
        "rewards.1.path": "m",
        "rollout.stop": "['a', 'b']",
    }


@pytest.mark.parametrize(
    ("library", "config"),
    [
        ("tensorboard", TrackersConfig(tensorboard=True)),
        ("wandb", TrackersConfig(wandb=WandbConfig())),
        ("mlflow", TrackersConfig(mlflow=MlflowConfig())),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_way_to_get_it(
    library: str, config: TrackersConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    message = f"trackers.{library}: needs {library}, .* run `pip install leash\\[trackers\\]`"
    with pytest.raises(UserError, match=message):
        require_trackers(config)


def test_online_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    config = TrackersConfig(wandb=WandbConfig(mode="online"))
    with pytest.raises(UserError, match="set the environment variable WANDB_API_KEY"):
        require_trackers(config)


@pytest.mark.parametrize(("url", "found"), [(None, True), ("https://wandb.lab:8080", False)])
def test_the_key_that_wandb_login_left_for_the_same_server_is_found(
    url: str | None, found: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(
        "machine api.wandb.ai\n  login user\n  password secret\n", encoding="utf-8"
    )
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert opening._has_wandb_key() is found
