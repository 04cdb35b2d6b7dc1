"""Weights from another node, as a buffer of this one. How they travel: `tests/end_to_end/test_nodes_real.py`."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.weight_relay import _read, brought_here
from core.errors import WorkerError
from core.weights import BUFFER_PREFIX, SHARED_MEMORY, map_buffer, new_buffer_path
from tests.fakes import make_manifest

WEIGHTS = np.arange(256, dtype=np.uint8)


def test_the_bytes_are_here_for_as_long_as_they_are_needed() -> None:
    manifest = replace(make_manifest(3), num_bytes=len(WEIGHTS))
    with brought_here(manifest, WEIGHTS) as here:
        assert Path(here.path).name.startswith(f"{BUFFER_PREFIX}{os.getpid()}-")
        assert map_buffer(here.path, here.num_bytes).tolist() == WEIGHTS.tolist()
        assert replace(here, path=manifest.path) == manifest
    assert not Path(here.path).exists()


def test_they_do_not_stay_when_loading_fails() -> None:
    with pytest.raises(RuntimeError), brought_here(make_manifest(3), WEIGHTS) as here:
        raise RuntimeError
    assert not Path(here.path).exists()


def test_a_buffer_that_is_gone_or_cut_short_is_the_workers_trouble_and_not_the_runs(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="buffer .*gone cannot be read .No such file"):
        _read(str(tmp_path / "gone"), 8)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(WorkerError, match="short holds 4 of 8 bytes"):
        _read(str(tmp_path / "short"), 8)
    assert _read(str(tmp_path / "short"), 4).tobytes() == b"1234"


def test_a_new_buffer_clears_what_the_dead_have_left_and_nothing_else() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    abandoned = SHARED_MEMORY / f"{BUFFER_PREFIX}{dead.pid}-test"
    own = SHARED_MEMORY / f"{BUFFER_PREFIX}{os.getpid()}-test"
    try:
        abandoned.touch()
        own.touch()
        path = new_buffer_path()
        assert not abandoned.exists()
        assert own.exists()
        assert path.parent == SHARED_MEMORY
        assert not path.exists()
    finally:
        own.unlink()
        abandoned.unlink(missing_ok=True)
