"""The page of `leash dash` in a real browser, while its run goes on."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from orchestration.dashboard.server import beside
from tests.orchestration.live_run import serving
from tests.orchestration.made_up_run import MadeUpRun, row

Serve = Callable[..., str]
VIEWS = ("overview", "charts", "system", "rollouts", "events")
AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"


def card(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True)


def colours_on(chart: Locator) -> int:
    """How many pixels of the chart's canvas have a strong colour, as lines do and grids and texts do not."""
    count = chart.locator("canvas").evaluate(
        """canvas => {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let i = 0; i < data.length; i += 4) {
                const [r, g, b, a] = data.slice(i, i + 4);
                if (a > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 90) count += 1;
            }
            return count;
        }"""
    )
    return int(count)


def test_charts_show_what_is_there_and_then_what_comes(page: Page, serve: Serve, run: MadeUpRun) -> None:
    page.goto(serve(run.folder))
    reward = card(page, "Reward")
    expect(reward.get_by_role("row", name="score mean")).to_contain_text("0.75")
    expect(page.get_by_text("step 2 of 8")).to_be_visible()
    expect(card(page, "Latest events")).to_contain_text("rollout-0 died and was replaced")
    page.wait_for_function("document.querySelectorAll('.plot canvas').length >= 3")
    assert colours_on(reward) > 100
    run.step(3, score_mean=0.875, score_std=0.5, entropy_sampled=2.0)
    expect(reward.get_by_role("row", name="score mean")).to_contain_text("0.875")
    expect(page.get_by_text("step 3 of 8")).to_be_visible()
    expect(card(page, "Entropy").get_by_role("row", name="entropy sampled")).to_contain_text("2 nats")


def test_every_worker_has_a_line_in_the_charts_of_what_workers_say(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    for step in (3, 4):
        run.step(
            step,
            **{
                f"{key}_{worker}{unit}": value * step * (1e9 if unit == "_bytes" else 1)
                for worker, value in (("rollout-0", 0.1), ("rollout-1", 0.2))
                for key, unit in (
                    ("memory", "_bytes"),
                    ("cpu", "_s"),
                    ("engine_waiting", ""),
                    ("kv_cache", "_fraction"),
                    ("prefix_hits", "_tokens"),
                )
            },
            checkpoint_age_s=60.0 * step,
            checkpoint_bytes=2.0**30,
            restarts_rollout=step - 3,
        )
    page.goto(serve(run.folder) + "#/charts")
    for title, words, figures in (
        ("Memory", "worker memory bytes", ("400 MB", "800 MB")),
        ("CPU", "worker cpu", ("0.4 s", "0.8 s")),
        ("Requests in the engines", "engine waiting", ("0.4", "0.8")),
        ("KV cache of the engines", "engine kv cache fraction", ("40 %", "80 %")),
        ("Prefix cache of the engines", "engine prefix hits", ("0.4 tokens", "0.8 tokens")),
    ):
        for worker, figure in zip(("rollout-0", "rollout-1"), figures, strict=True):
            expect(card(page, title).get_by_role("row", name=f"{words} {worker}")).to_contain_text(figure)
    expect(card(page, "Checkpoints").get_by_role("row", name="checkpoint age")).to_contain_text("4 min")
    expect(
        card(page, "Restarts and retries").get_by_role("row", name="worker restarts rollout")
    ).to_contain_text("1")
    expect(card(page, "GPU")).to_have_count(0)
    card(page, "CPU").scroll_into_view_if_needed()
    expect(card(page, "CPU").locator("canvas")).to_be_visible()
    assert colours_on(card(page, "CPU")) > 100


def test_a_half_written_line_is_waited_for(page: Page, serve: Serve, run: MadeUpRun) -> None:
    run.text("metrics.jsonl", '{"step": 3, "score')
    page.goto(serve(run.folder))
    expect(page.get_by_text("step 2 of 8")).to_be_visible()
    run.text("metrics.jsonl", '_mean": 0.5}\n')
    expect(page.get_by_text("step 3 of 8")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_red_flag_is_explained_and_goes_when_the_figure_is_healthy_again(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder))
    expect(page.get_by_text("No red flags")).to_be_visible()
    run.step(3, score_mean=0.5, score_std=0.0)
    words = "score std 0 is below 1e\N{MINUS SIGN}6 (step 3): all completions score the same"
    expect(card(page, "Red flags")).to_contain_text(words)
    expect(card(page, "Reward")).to_contain_text(words)
    run.step(4, score_mean=0.5, score_std=0.25)
    expect(page.get_by_text("No red flags")).to_be_visible()


def test_a_figure_of_a_worker_that_is_gone_is_no_red_flag(page: Page, serve: Serve, run: MadeUpRun) -> None:
    run.step(3, score_mean=0.5, score_std=0.5, **{"kv_cache_max_rollout-1_fraction": 1.0})
    page.goto(serve(run.folder))
    expect(card(page, "Red flags")).to_contain_text("rollout-1 100 % is above")
    run.step(4, score_mean=0.5, score_std=0.5)
    expect(page.get_by_text("No red flags")).to_be_visible()


def test_a_damaged_file_is_one_clear_error(page: Page, serve: Serve, run: MadeUpRun) -> None:
    run.text("metrics.jsonl", "{broken}\n")
    page.goto(serve(run.folder))
    expect(page.get_by_role("alert")).to_contain_text("metrics.jsonl:3: not a JSON object")
    expect(card(page, "Reward").get_by_role("row", name="score mean")).to_contain_text("0.75")


def test_every_chart_has_its_figures_as_a_table(page: Page, serve: Serve, run: MadeUpRun) -> None:
    page.goto(serve(run.folder))
    reward = card(page, "Reward")
    reward.get_by_text("Figures as a table").click()
    table = reward.get_by_role("table", name="Reward, the latest step first")
    _, *lines = table.inner_text().splitlines()  # the first one is the caption
    assert [line.split("\t") for line in lines] == [
        ["step", "score mean", "score std"],
        ["2", "0.75", "0.5"],
        ["1", "0.25", "0.5"],
    ]


def test_dragging_zooms_all_charts_and_the_address_keeps_it(page: Page, serve: Serve, run: MadeUpRun) -> None:
    for step in range(3, 9):
        run.step(step, score_mean=0.5, score_std=0.5, kl_nats_per_sequence=0.4)
    page.goto(serve(run.folder))
    expect(page.get_by_text("step 8 of 8")).to_be_visible()
    plot = card(page, "Reward").locator(".u-over")
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 2 / 7, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 5 / 7, box["y"] + 40, steps=5)
    page.mouse.up()
    expect(page.get_by_label("From step")).to_have_value("3")
    expect(page.get_by_label("to", exact=True)).to_have_value("6")
    assert "from=3&to=6" in page.url
    expect(page.get_by_label("From step")).to_have_value("3")
    plot.dblclick()
    expect(page.get_by_label("From step")).to_have_value("")


def test_the_cursor_is_in_all_charts_at_the_same_step(page: Page, serve: Serve, run: MadeUpRun) -> None:
    page.goto(serve(run.folder))
    card(page, "Reward").locator(".u-over").hover(position={"x": 2, "y": 40})
    for title in ("Reward", "KL from the reference"):
        expect(card(page, title).get_by_role("columnheader", name="step 1")).to_be_visible()
    expect(card(page, "Reward")).to_contain_text("Step 1: worker: rollout-0 died and was replaced")


def test_charts_can_be_read_with_the_keyboard_alone(page: Page, serve: Serve, run: MadeUpRun) -> None:
    page.goto(serve(run.folder))
    expect(card(page, "Reward").get_by_role("row", name="score mean")).to_contain_text("0.75")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    card(page, "Reward").get_by_role("group", name="Reward", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#announcer")).to_have_text("Step 1: score mean 0.25, score std 0.5")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#announcer")).to_have_text("Step 2: score mean 0.75, score std 0.5")
    page.keyboard.press("Tab")
    expect(card(page, "Reward").get_by_role("button", name="score mean")).to_be_focused()
    page.keyboard.press("Space")
    toggle = card(page, "Reward").get_by_role("button", name="score mean")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    expect(toggle).to_be_focused()


def test_views_are_reached_with_the_keyboard_and_the_back_button(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder))
    page.get_by_role("link", name="Rollouts").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    expect(page).to_have_title("Rollouts · Leash")
    expect(page.get_by_role("link", name="Rollouts")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page).to_have_title("Overview · Leash")


def test_runs_are_compared_and_left_out(page: Page, serve: Serve, run: MadeUpRun, tmp_path: Path) -> None:
    other = MadeUpRun(tmp_path / "run-b")
    other.step(1, score_mean=-1.0)
    page.goto(serve(run.folder, other.folder))
    scores = card(page, "Reward").get_by_role("row", name="score mean")
    expect(scores).to_have_text(re.compile("0.75.*\N{MINUS SIGN}1"))
    card(page, "Reward").locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    mark = card(page, "Reward").locator(".event-here")
    expect(mark).to_have_text("Step 1: run-a, worker: rollout-0 died and was replaced")
    page.get_by_role("checkbox", name="run-a").uncheck()
    expect(scores).to_have_text(re.compile("^score mean\N{MINUS SIGN}1$"))
    page.reload()
    expect(scores).to_have_text(re.compile("^score mean\N{MINUS SIGN}1$"))


def test_smoothing_is_a_moving_average_corrected_for_its_start(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder))
    smooth = page.evaluate(
        "import('/js/plot_data.js').then(({ ema }) => ema([1, null, 2, 4], 0.5))",
    )
    # 0.5 / 0.5; (0.25 + 1) / 0.75; (0.125 + 0.5 + 2) / 0.875
    assert smooth == [1, None, pytest.approx(5 / 3), pytest.approx(3)]
    page.get_by_label("Smoothing").fill("0.5")
    assert "smooth=0.5" in page.url


def test_figures_of_another_size_or_unit_have_an_axis_of_their_own(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder))
    series = [
        {"key": "a", "metric": "a", "unit": "nats"},
        {"key": "b", "metric": "b", "unit": "nats"},
        {"key": "c", "metric": "c", "unit": "nats"},
        {"key": "d", "metric": "d", "unit": "ratio"},
    ]
    records = [{"step": 1, "a": 10.0, "b": -100.0, "c": 0.1, "d": 5.0}]
    axes = page.evaluate(
        """([series, records]) => import("/js/plot_data.js").then(({ plotData }) =>
            plotData({ series }, [{ index: 0, records }], 0).lines.map((line) => line.axis))""",
        [series, records],
    )
    assert axes == ["left", "left", "right", "right"]


def test_the_viewer_shows_completions_side_by_side_with_their_tokens(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder) + "#/rollouts")
    first = page.get_by_role("article", name="Completion 1 of 2")
    second = page.get_by_role("article", name="Completion 2 of 2")
    expect(first).to_contain_text("advantage+1.00")
    expect(second).to_contain_text("advantage\N{MINUS SIGN}1.00")
    expect(first).to_contain_text("taste1.50")
    tokens = first.locator(".tokens span")
    assert tokens.all_inner_texts() == ["is", "good", "<end>"]
    # Each -1 - (-3.5) = 2.5 nats likelier than under the reference; in the other, 0.5 less likely.
    expect(tokens.nth(0)).to_have_class("up-3")
    expect(tokens.nth(2)).to_have_class("up-3 special")
    expect(second.locator(".tokens span").nth(0)).to_have_class("down-1")
    tokens.nth(1).hover()
    expect(
        page.get_by_text(
            "good · id 4 · policy \N{MINUS SIGN}1.00, reference \N{MINUS SIGN}3.50, ratio +2.50 nats"
        )
    ).to_be_visible()
    first.get_by_text("Tokens as a table").click()
    expect(first.get_by_role("row", name="good")).to_have_text(
        "good4\N{MINUS SIGN}1.00\N{MINUS SIGN}3.50+2.50"
    )
    page.get_by_label("colour tokens").uncheck()
    expect(first.locator(".tokens .up-3")).to_have_count(0)


def test_rollouts_are_searched_filtered_sorted_and_shared_as_a_link(
    page: Page, browser: Browser, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder) + "#/rollouts")
    prompts = page.get_by_role("navigation", name="Prompts").get_by_role("link")
    expect(prompts).to_have_count(2)
    page.get_by_label("Sort by").select_option("worst")
    expect(prompts.first).to_contain_text("This film is")
    page.get_by_label("Text").fill("DULL")
    expect(prompts).to_have_count(1)
    expect(page.get_by_role("article", name="Completion 1 of 1")).to_contain_text("dull")
    page.get_by_label("Score at least").fill("1")
    expect(page.get_by_text("No rollout of this step is like that.")).to_be_visible()
    page.get_by_label("Text").fill("")
    expect(page.get_by_role("article", name="Completion 1 of 2")).to_be_visible()
    shared = browser.new_page()
    shared.goto(page.url)
    expect(shared.get_by_label("Score at least")).to_have_value("1")
    expect(shared.get_by_label("Sort by")).to_have_value("worst")
    expect(shared.get_by_role("article", name="Completion 1 of 2")).to_be_visible()
    shared.close()


def test_new_steps_do_not_take_the_reader_away(page: Page, serve: Serve, run: MadeUpRun) -> None:
    page.goto(serve(run.folder) + "#/rollouts")
    expect(page.get_by_role("combobox", name="Step", exact=True)).to_have_value("2")
    run.samples(3, [[row("This film", "is dull", 0.0)]])
    run.step(3, score_mean=0.0)
    page.get_by_role("button", name="Later step").click()
    expect(page.get_by_role("article", name="Completion 1 of 1")).to_contain_text("dull")
    assert "step=3" in page.url


def test_a_step_that_is_done_again_is_shown_as_it_is_now(page: Page, serve: Serve, run: MadeUpRun) -> None:
    page.goto(serve(run.folder) + "#/rollouts?step=2")
    article = page.get_by_role("article", name="Completion 1 of 1")
    run.samples(2, [[row("This film", "is bad", 0.0)]])
    run.step(2, score_mean=0.0)
    expect(article).to_contain_text("bad")
    run.samples(2, [[row("This film", "is dull", 0.0)]])
    run.step(2, score_mean=0.5)
    expect(article).to_contain_text("dull")


def test_a_step_that_cannot_be_read_for_a_while_is_shown_again(
    browser: Browser, serve: Serve, run: MadeUpRun
) -> None:
    page = browser.new_page()  # its console says that the answer was an error
    page.goto(serve(run.folder) + "#/rollouts?step=2")
    article, prompts = page.get_by_role("article"), page.get_by_role("navigation", name="Prompts")
    expect(article).to_have_count(2)
    good = (run.folder / "samples" / "step-000002.jsonl").read_text(encoding="utf-8")
    run.text("samples/step-000002.jsonl", "{broken}\n")
    run.step(3, score_mean=0.5)
    expect(page.get_by_text("not a JSON object")).to_be_visible()
    expect(prompts.get_by_role("link")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("not a JSON object")).to_be_visible()
    expect(page.get_by_role("combobox", name="Step", exact=True)).to_have_value("2")
    (run.folder / "samples" / "step-000002.jsonl").write_text(good, encoding="utf-8")
    run.step(4, score_mean=0.5)
    expect(article).to_have_count(2)
    expect(prompts.get_by_role("link")).to_have_count(2)
    page.close()


def test_the_address_is_a_link_to_the_step_that_is_shown_and_the_view_begins_with_the_last(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder) + "#/rollouts")
    step = page.get_by_role("combobox", name="Step", exact=True)
    expect(step).to_have_value("2")
    expect(page).to_have_url(re.compile("step=2"))
    run.samples(3, [[row("This film", "is dull", 0.0)]])
    run.step(3, score_mean=0.0)
    page.reload()
    expect(step).to_have_value("2")
    page.get_by_role("link", name="Overview").click()
    page.get_by_role("link", name="Rollouts").click()
    expect(step).to_have_value("3")
    page.goto(page.url.replace("step=3", "step=9"))
    expect(page).to_have_url(re.compile("step=3"))


def test_a_page_that_was_open_shows_the_run_that_is_served_now(
    browser: Browser, run: MadeUpRun, tmp_path: Path
) -> None:
    """On the same port, once the run that it showed is over; its damage is not the new one's."""
    page = browser.new_page()  # its console says that the connection was lost
    other = MadeUpRun(tmp_path / "other")
    other.step(1, score_mean=0.125)
    run.text("metrics.jsonl", "{broken}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with beside(run.folder, host="127.0.0.1", port=port) as url:
        assert url is not None
        page.goto(url + "#/overview?hidden=1&from=1&to=2")
        expect(page.get_by_role("alert")).to_contain_text("not a JSON object")
    expect(page.get_by_text("no connection; trying again")).to_be_visible()
    with beside(other.folder, host="127.0.0.1", port=port):
        expect(page.get_by_role("row", name="other")).to_be_visible()
        expect(card(page, "Reward").get_by_role("row", name="score mean")).to_contain_text("0.125")
        expect(page.get_by_role("alert")).to_be_empty()
        assert page.url.endswith("#/overview")
        page.close()


def test_a_server_that_refuses_is_not_said_to_be_tried_again(
    browser: Browser, serve: Serve, run: MadeUpRun
) -> None:
    page = browser.new_page()  # its console says, rightly, that the stream was refused
    page.route("**/api/stream", lambda route: route.fulfill(status=401, body="{}"))
    page.goto(serve(run.folder))
    expect(page.get_by_text("refused; open the address that leash printed last")).to_be_visible()
    page.close()


def test_without_a_tokenizer_the_text_is_shown_with_a_note(page: Page, serve: Serve, tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path / "run", model=tmp_path / "gone")
    run.samples(1, [[row("This film", "is good", 1.0)]])
    page.goto(serve(run.folder) + "#/rollouts")
    expect(page.get_by_role("article")).to_contain_text("is good")
    expect(page.get_by_text("Tokens are not coloured")).to_be_visible()


def test_what_a_policy_writes_stays_text(page: Page, serve: Serve, run: MadeUpRun) -> None:
    hostile = row("This film", "is good", 1.0) | {
        "prompt": HOSTILE,
        "completion": HOSTILE,
        "rewards": {HOSTILE: 1.0},
    }
    run.samples(3, [[hostile | {"token_ids": [1, 2, 99, 99, 99]}]])
    run.step(3, **{f"reward_{HOSTILE}": 1.0})
    run.event(3, HOSTILE, HOSTILE)
    url = serve(run.folder)
    for view in VIEWS:
        page.goto(f"{url}#/{view}")
        expect(page.get_by_role("link", name=re.compile(view, re.I)).first).to_have_attribute(
            "aria-current", "page"
        )
        if view != "system":
            expect(page.get_by_text("onerror").first).to_be_attached()
        assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
        assert "pwned" not in page.title()


def test_a_live_run_shows_its_workers_and_then_that_it_has_ended(
    page: Page, serve: Serve, tmp_path: Path
) -> None:
    run = MadeUpRun(tmp_path / "run")
    with serving(run.folder):
        page.goto(serve(run.folder) + "#/system")
        expect(page.get_by_role("table", name="Workers").get_by_role("row", name="rollout-0")).to_be_visible()
        expect(page.get_by_role("table", name="Settings")).to_contain_text("kl_coef0.1")
        expect(page.get_by_role("table", name="Runs", exact=True)).to_contain_text("training")
    expect(page.get_by_role("table", name="Runs", exact=True)).to_contain_text("not running", timeout=15_000)
    expect(page.get_by_text("Only a live run has workers.")).to_be_visible()


def test_the_picture_of_the_system_has_the_means_of_the_last_steps(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder) + "#/system")
    expect(page.get_by_text("sampling 5 s")).to_be_visible()
    expect(page.get_by_text("waits for rollouts \N{EN DASH}")).to_be_visible()
    run.step(3, sampling_s=8.0, wait_batch_s=6.0, wait_policy_s=1.0)
    expect(page.get_by_text("sampling 6 s")).to_be_visible()
    expect(page.locator(".flow .longest")).to_have_text("waits for rollouts 6 s")


def test_events_are_listed_and_left_out_by_kind(page: Page, serve: Serve, run: MadeUpRun) -> None:
    run.event(2, "checkpoint", "step 2 committed")
    page.goto(serve(run.folder) + "#/events")
    expect(page.get_by_role("row", name="step 2 committed")).to_be_visible()
    page.get_by_label("checkpoint").uncheck()
    expect(page.get_by_role("row", name="step 2 committed")).to_have_count(0)
    run.event(2, "scale", "rollout: 1 -> 2 workers")
    expect(page.get_by_role("row", name="1 -> 2 workers")).to_be_visible()


def test_checkpoints_are_marked_if_that_is_asked_for(page: Page, serve: Serve, run: MadeUpRun) -> None:
    run.event(1, "checkpoint", "step 1 is committed")
    page.goto(serve(run.folder))
    reward = card(page, "Reward")
    reward.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    expect(reward.locator(".event-here")).to_have_text("Step 1: worker: rollout-0 died and was replaced")
    page.get_by_label("Mark checkpoints").check()
    reward.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(reward.locator(".event-here")).to_contain_text("checkpoint: step 1 is committed")
    assert "checkpoints=marked" in page.url


def test_the_latest_events_are_those_of_all_runs_that_are_shown(
    page: Page, serve: Serve, run: MadeUpRun, tmp_path: Path
) -> None:
    """By time: of many events of the other run, earlier ones do not displace this one's."""
    other = MadeUpRun(tmp_path / "other")
    other.step(1, score_mean=0.5)
    for number in range(10):
        other.event(0, "worker", f"other event {number}")
    page.goto(serve(run.folder, other.folder))
    latest = card(page, "Latest events")
    expect(latest).to_contain_text("rollout-0 died and was replaced")
    expect(latest).to_contain_text("other event 9")
    page.get_by_role("checkbox", name="other").uncheck()
    expect(latest).not_to_contain_text("other event 9")


def test_what_rollouts_are_searched_for_does_not_hide_events(
    page: Page, serve: Serve, run: MadeUpRun
) -> None:
    page.goto(serve(run.folder) + "#/rollouts?text=dull")
    page.get_by_role("link", name="Events").click()
    expect(page.get_by_role("cell", name="rollout-0 died and was replaced")).to_be_visible()


def test_the_theme_follows_the_system_and_the_switch_wins(
    browser: Browser, serve: Serve, run: MadeUpRun
) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(serve(run.folder))

    def brightness() -> int:
        colour = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    expect(card(page, "Reward")).to_be_visible()
    assert brightness() < 150
    page.get_by_label("Theme").select_option("light")
    assert brightness() > 600
    page.reload()
    assert brightness() > 600
    context.close()


def test_the_content_policy_is_in_force_and_nothing_is_fetched_from_elsewhere(
    browser: Browser, serve: Serve, run: MadeUpRun
) -> None:
    url = serve(run.folder)
    page = browser.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.add_init_script(
        "window.broken = []; addEventListener('securitypolicyviolation', e => broken.push(e.effectiveDirective))"
    )
    for view in VIEWS:
        page.goto(f"{url}#/{view}")
        expect(page.get_by_text("step 2 of 8")).to_be_visible()
    assert page.evaluate("broken") == []
    assert {request[: len(url)] for request in requested} == {url}
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.text = "window.ran = true";
            document.body.append(script);
            document.body.setAttribute("style", "color: red");
        }"""
    )
    page.wait_for_function("broken.length === 2")
    assert page.evaluate("broken") == ["script-src-elem", "style-src-attr"]
    assert page.evaluate("window.ran") is None
    page.close()


@pytest.mark.parametrize("width", [1280, 800])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, serve: Serve, run: MadeUpRun, theme: Any, width: int) -> None:
    run.step(3, score_mean=0.5, score_std=0.0)
    run.event(3, "alarm", "length")
    context = browser.new_context(
        color_scheme=theme, bypass_csp=True, viewport={"width": width, "height": 900}
    )
    page = context.new_page()
    with serving(run.folder):
        url = serve(run.folder)
        for view in VIEWS:
            page.goto(f"{url}#/{view}")
            expect(page.get_by_text("step 3 of 8")).to_be_visible()
            page.wait_for_load_state("load")
            page.wait_for_timeout(300)  # for texts that are filled in by a fetch
            page.evaluate(
                "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
            )
            page.add_script_tag(path=AXE)
            found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
            told = [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found]
            assert told == [], f"{view}: {json.dumps(told, indent=2)}"
    context.close()
