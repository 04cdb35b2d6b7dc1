"""What the dashboard makes of records and samples: charts, groups, tokens."""

from pathlib import Path

import pytest

from core.errors import UserError
from core.metrics.registry import METRICS
from core.sample_files import step_files
from orchestration.dashboard.charts import charts_of
from orchestration.dashboard.samples import groups_of_step, summary, with_tokens
from tests.orchestration.made_up_run import MadeUpRun, made_up_model, row


@pytest.fixture
def run(tmp_path: Path) -> MadeUpRun:
    return MadeUpRun(tmp_path / "a")


def test_a_panel_is_a_chart_if_a_record_has_a_figure_of_it() -> None:
    charts = charts_of(["step", "push_s", "reward_taste", "score_mean", "kl_nats_per_sequence"])
    assert [chart["title"] for chart in charts] == ["Reward", "KL from the reference"]
    assert [series["key"] for series in charts[0]["series"]] == ["reward_taste", "score_mean"]
    assert [series["label"] for series in charts[0]["series"]] == ["reward taste", "score mean"]
    assert charts[1]["in_overview"]
    assert charts[1]["series"][0]["healthy"] == {
        "low": -2.0,
        "high": 30.0,
        "red_flag": METRICS["leash_kl_nats_per_sequence"].healthy.red_flag,  # type: ignore[union-attr]
    }


def test_every_figure_of_the_contract_without_labels_has_its_chart_and_no_other() -> None:
    metrics = [metric for metric in METRICS.values() if metric.record and not metric.labels]
    for metric in metrics:
        titles = [chart["title"] for chart in charts_of([str(metric.record)])]
        assert titles == ([] if metric.record == "step" else [metric.panel.title])


def test_a_label_is_the_metrics_name_in_words_without_seconds() -> None:
    charts = charts_of(["wait_batch_s", "bytes", "completion_tokens"])
    assert [series["label"] for chart in charts for series in chart["series"]] == [
        "completion tokens",
        "wait batch",
        "weight push bytes",
    ]


def test_steps_with_samples_are_found_by_number(run: MadeUpRun) -> None:
    for step in (10, 9, 1_000_000):
        run.samples(step, [[row("This film", "is good", 1.0)]])
    (run.folder / "samples" / "step-x.jsonl").touch()
    assert list(step_files(run.folder)) == [9, 10, 1_000_000]


def test_an_advantage_is_the_score_less_the_mean_of_its_group(run: MadeUpRun) -> None:
    good, bad = row("This film", "is good", 2.0), row("This film", "is bad", -1.0)
    run.samples(1, [[good, bad], [good]])
    first, second = groups_of_step(run.folder, 1)
    assert [completion["advantage"] for completion in summary(first)["completions"]] == [1.5, -1.5]
    assert [completion["advantage"] for completion in summary(second)["completions"]] == [None]
    assert summary(first)["completions"][0] == {
        "text": "is good",
        "score": 2.0,
        "advantage": 1.5,
        "rewards": {"taste": 2.0},
        "kl_nats": 0.0,
        "tokens": 3,
        "truncated": False,
        "policy_version": 3,
    }


def test_a_score_that_is_no_number_has_no_advantage(run: MadeUpRun) -> None:
    run.samples(1, [[row("This film", "is good", float("nan")), row("This film", "is bad", 1.0)]])
    assert [c["advantage"] for c in summary(groups_of_step(run.folder, 1)[0])["completions"]] == [None, None]


def test_tokens_have_their_texts_and_special_ones_are_marked(run: MadeUpRun, tmp_path: Path) -> None:
    model = made_up_model(tmp_path / "model")
    run.samples(1, [[row("This film", "is good", 1.0)]])
    group = with_tokens(groups_of_step(run.folder, 1)[0], str(model))
    completion = group["completions"][0]
    assert completion["token_texts"] == ["This", "film", "is", "good", "<end>"]
    assert completion["is_special"] == [False, False, False, False, True]
    assert completion["num_prompt_tokens"] == 2
    assert group["note"] is None


def test_a_model_from_the_hub_is_read_from_the_cache_and_asked_of_nobody(
    run: MadeUpRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshots = tmp_path / "models--lab--tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    made_up_model(snapshots / revision)
    run.samples(1, [[row("This film", "is good", 1.0)]])
    rows = groups_of_step(run.folder, 1)[0]
    assert with_tokens(rows, "lab/tiny", revision)["completions"][0]["token_texts"][0] == "This"
    assert "tokenizer.json" in with_tokens(rows, "lab/tiny", "f" * 40)["note"]


@pytest.mark.parametrize("model", ["nowhere", "asset:no-such", None])
def test_without_a_tokenizer_there_is_a_note_and_the_rest(run: MadeUpRun, model: str | None) -> None:
    run.samples(1, [[row("This film", "is good", 1.0)]])
    group = with_tokens(groups_of_step(run.folder, 1)[0], model)
    assert group["note"]
    assert group["completions"][0]["token_texts"] is None
    assert group["completions"][0]["token_ids"] == [1, 2, 3, 4, 0]


def test_a_damaged_tokenizer_is_a_note_too(run: MadeUpRun, tmp_path: Path) -> None:
    model = made_up_model(tmp_path / "damaged")
    (model / "tokenizer.json").write_text("{")
    run.samples(1, [[row("This film", "is good", 1.0)]])
    assert "tokenizer.json" in with_tokens(groups_of_step(run.folder, 1)[0], str(model))["note"]


def test_a_damaged_sample_is_named(run: MadeUpRun) -> None:
    run.samples(1, [[{"prompt": "This"}]])
    with pytest.raises(
        UserError, match="step-000001.jsonl:1: its prompt|step-000001.jsonl:1: its completion"
    ):
        groups_of_step(run.folder, 1)
