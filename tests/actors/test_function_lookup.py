"""What is wrong with `module:name` is found in the files alone, and only what is surely wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.function_lookup import what_is_wrong
from actors.rewards import load_function

SOURCES = {
    "scores.py": "import os\nfrom math import floor as score_down\ndef brevity(prompts, completions): ...\n",
    "broken.py": "def brevity(:\n",
    "stars.py": "from scores import *\n",
    "late.py": "def __getattr__(name):\n    return len\n",
    "made.py": "globals()['brevity'] = len\n",
    "bound.py": "def f():\n    global a\n    a = len\nf()\nif (b := len):\n    c = d = len\nfor e in [len]: ...\n",
    "pack/__init__.py": '"""Nothing."""\n',
    "pack/inner.py": "brevity = len\n",
    "odd/__init__.py": "import sys, scores\nsys.modules['odd.inner'] = scores\n",
    "bare/inner.py": "brevity = len\n",
    "bare/deep/inner.py": "brevity = len\n",
    "pack/deep/inner.py": "brevity = len\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where `leash` runs, with a user's modules, none of which may be imported by the look-up."""
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if module.partition(".")[0] in {
            "scores",
            "broken",
            "stars",
            "late",
            "made",
            "bound",
            "pack",
            "odd",
            "bare",
        }:
            del sys.modules[module]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("scores:brevty", "scores.py has no 'brevty' (there is brevity)"),
        ("score:brevity", "no module 'score' is found from"),
        ("pack.iner:brevity", "no module 'pack.iner' is found"),
        ("bare.iner:brevity", "no module 'bare.iner' is found"),
        ("bare.deep.iner:brevity", "no module 'bare.deep.iner' is found"),
        ("bare.deep.inner:brevty", "inner.py has no 'brevty'"),
        ("pack.inner:brevty", "inner.py has no 'brevty'"),
        ("broken:brevity", "broken.py, line 1"),
    ],
)
def test_what_is_surely_wrong_is_said(reference: str, said: str) -> None:
    assert said in str(what_is_wrong(reference))
    with pytest.raises(Exception, match="cannot be loaded"):
        load_function(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "scores:brevity",
        "scores:score_down",
        "stars:brevity",
        "late:anything",
        "made:brevity",
        *(f"bound:{name}" for name in "abcde"),
        "pack.inner:brevity",
        "bare.inner:brevity",
        "bare.deep.inner:brevity",
        "pack.deep.inner:brevity",
        "odd.inner:brevity",
        "math:floor",
        "actors.reward_functions:vader_sentiment",
        "os.path:join",
    ],
)
def test_what_python_can_import_is_never_refused(reference: str) -> None:
    assert what_is_wrong(reference) is None
    load_function(reference)


def test_nothing_of_the_users_runs(folder: Path) -> None:
    (folder / "loud.py").write_text("raise SystemExit\n", encoding="utf-8")
    assert "has no 'brevity'" in str(what_is_wrong("loud:brevity"))
    assert "loud" not in sys.modules
