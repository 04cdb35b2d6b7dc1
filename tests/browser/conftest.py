"""A real browser before a real `leash dash`, over a made-up run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.orchestration.made_up_run import MadeUpRun, made_up_model, row

CHROMIUM = Path(os.environ.get("LEASH_CHROMIUM", "/usr/bin/chromium"))
"""Debian's; Playwright's own is not on a package registry."""
REPOSITORY = Path(__file__).parents[2]

expect.set_options(timeout=20_000)  # milliseconds, on a machine that does other things too

Serve = Callable[..., str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: Playwright's event loop runs in this thread, and tests beside it cannot start theirs."""
    if not CHROMIUM.is_file():
        reason = f"no Chromium at {CHROMIUM}; install Debian's chromium or set LEASH_CHROMIUM"
        if os.environ.get("LEASH_REQUIRE_TOOLS"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, serve: Serve) -> Iterator[Page]:
    """A page on which no error and no violation of the content policy goes unnoticed. Closed before the servers,
    which it would ask again."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def run(tmp_path: Path) -> MadeUpRun:
    """Two steps of eight, with rollouts of the second and an event."""
    run = MadeUpRun(tmp_path / "run-a", model=made_up_model(tmp_path / "model"))
    run.step(
        1, score_mean=0.25, score_std=0.5, kl_nats_per_sequence=0.1, completion_tokens=3.0, sampling_s=4.0
    )
    run.step(
        2, score_mean=0.75, score_std=0.5, kl_nats_per_sequence=0.4, completion_tokens=3.0, sampling_s=6.0
    )
    run.event(1, "worker", "rollout-0 died and was replaced")
    good, bad = (
        row("This film", "is good", 1.5, reference=-3.5),
        row("This film", "is bad", -0.5, reference=-0.5),
    )
    run.samples(2, [[good, bad], [row("This film is", "dull", -2.0)]])
    return run


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts `leash dash` on folders; its URL."""
    with ExitStack() as stack:
        yield lambda *folders: stack.enter_context(_dash(*folders))


@contextmanager
def _dash(*folders: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "orchestration.cli", "dash", *map(str, folders)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
