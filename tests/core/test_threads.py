"""A thread that waits is found where it waits."""

import threading

from core.threads import busy_threads


def test_every_other_thread_is_named_with_its_innermost_calls() -> None:
    may_end, has_begun = threading.Event(), threading.Event()

    def stuck_in_here() -> None:
        has_begun.set()
        may_end.wait(20)

    thread = threading.Thread(target=stuck_in_here, name="engine", daemon=True)
    thread.start()
    assert has_begun.wait(20)
    said = busy_threads()
    may_end.set()
    thread.join()
    (engine,) = [part for part in said.split("; ") if part.startswith("engine: ")]
    assert "stuck_in_here (test_threads.py:" in engine
    assert engine.count(" < ") == 2
    assert "\n" not in said
    assert "busy_threads" not in said, "not the thread that asks"
