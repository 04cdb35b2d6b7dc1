"""The architecture as a table: who may import whom, and in which few files a heavy library is touched.

Reads the sources; nothing is imported. The same rules run over made-up files that break them, one by one.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

MAY_IMPORT = {
    "core": set(),
    "actors": {"core"},
    "learner": {"core"},
    "orchestration": {"core", "actors", "learner"},
}
"""Room -> the other rooms that it may know. Everything points down; actors and learner never meet."""

DOORS = {
    "vllm": {
        "actors/sampler.py",
        "actors/weight_pull.py",
        "actors/adapter_pull.py",
        "actors/engine_stats.py",
    },
    "deepspeed": {"learner/engine.py", "learner/process_group.py", "learner/resharding.py"},
    "ray": {
        "core/remote.py",
        "actors/handles.py",
        "actors/weight_relay.py",
        "learner/group.py",
        "orchestration/cluster/launch.py",
        "orchestration/doctor/cluster_facts.py",
        "orchestration/cluster/node_versions.py",
        "orchestration/jobs/submit.py",
    },
    "prometheus_client": {"orchestration/reporting/metrics_hub.py", "actors/engine_stats.py"},
    "rich": {"orchestration/reporting/terminal.py"},
    "starlette": {
        "core/http_server.py",
        "actors/reward_service/server.py",
        "orchestration/control/server.py",
        "orchestration/dashboard/app.py",
        "orchestration/dashboard/guard.py",
        "orchestration/dashboard/server.py",
    },
    "uvicorn": {
        "core/http_server.py",
        "actors/reward_service/server.py",
        "orchestration/control/server.py",
        "orchestration/dashboard/server.py",
    },
    "huggingface_hub": {"core/hub.py"},
    "tokenizers": {"orchestration/dashboard/token_texts.py"},
    "tensorboard": {"orchestration/trackers/tensorboard_files.py"},
    "wandb": {"orchestration/trackers/wandb_run.py"},
    "mlflow": {"orchestration/trackers/mlflow_run.py"},
    "yaml": {"orchestration/render.py", "orchestration/rendering/documents.py"},
    "py3langid": {"orchestration/alarm/languages.py"},
}
"""Heavy or intrusive library -> the only files that import it."""

MAX_LINES = 300
"""A file this long wants splitting."""

SECTION_IMPORTS = {"pydantic", "core", "actors", "learner"}
"""What a `config.py` may import besides the standard library, so that a recipe is checked in a second."""

FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for room in MAY_IMPORT
    for path in (REPOSITORY / room).rglob("*.py")
)


def violations(file: str, source: str) -> Iterator[str]:
    """Every rule that this file breaks, as a sentence with its line."""
    room, name = file.split("/")[0], file.split("/")[-1]
    lines = source.splitlines()
    tree = ast.parse(source)
    if name == "__init__.py" and source.strip():
        yield f"{file}: __init__.py is empty: import from the file that defines it"
    if len(lines) > MAX_LINES:
        yield f"{file}: {len(lines)} lines, more than {MAX_LINES}: split it"
    for line, module in _imports(tree):
        top = module.split(".")[0]
        if not top:
            yield f"{file}:{line}: a relative import: say where it comes from"
        if top in MAY_IMPORT.keys() - MAY_IMPORT[room] - {room}:
            yield f"{file}:{line}: {room} imports {module}: imports point from orchestration down to core"
        if file not in DOORS.get(top, {file}):
            yield f"{file}:{line}: {top} is imported in {', '.join(sorted(DOORS[top]))} only"
        is_section = top in SECTION_IMPORTS or (top in MAY_IMPORT and module.endswith(".config"))
        if name.endswith("config.py") and not is_section and top not in sys.stdlib_module_names:
            yield f"{file}:{line}: a config.py imports pydantic and other sections only, not {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "remote" and file not in DOORS["ray"]:
            yield f"{file}:{node.lineno}: .remote is Ray's: it appears in its doors only"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom) and not _is_explained(inner, lines):
                    yield f"{file}:{inner.lineno}: an import inside a function, and no comment says why"


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and module of every import, wherever it stands; an empty module for a relative one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in MAY_IMPORT:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "" if node.level else str(node.module)


def _is_explained(node: ast.Import | ast.ImportFrom, lines: list[str]) -> bool:
    """A comment on the import's line, or above the block of imports (and blank lines between) that it ends."""
    above = node.lineno - 2
    while not lines[above].strip() or lines[above].lstrip().startswith(("import ", "from ")):
        above -= 1
    return "#" in lines[node.lineno - 1] or lines[above].lstrip().startswith("#")


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_to_the_architecture(file: str) -> None:
    assert list(violations(file, (REPOSITORY / file).read_text(encoding="utf-8"))) == []


def test_every_room_is_a_package() -> None:
    assert {file for file in FILES if file.count("/") == 1 and file.endswith("/__init__.py")} == {
        f"{room}/__init__.py" for room in MAY_IMPORT
    }


def test_the_parts_of_orchestration_build_on_each_other_in_one_direction() -> None:
    files = [file for file in FILES if file.startswith("orchestration/")]
    TopologicalSorter(parts_of({file: (REPOSITORY / file).read_text("utf-8") for file in files})).prepare()


def test_two_parts_that_need_each_other_are_noticed() -> None:
    sources = {
        "orchestration/a/one.py": "from orchestration.b.two import x",
        "orchestration/b/two.py": "from orchestration.c import y",
        "orchestration/c.py": "from orchestration import a",
    }
    with pytest.raises(CycleError):
        TopologicalSorter(parts_of(sources)).prepare()
    sources["orchestration/c.py"] = "from orchestration.a.config import SectionOfA"
    TopologicalSorter(parts_of(sources)).prepare()


def parts_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Part of a room (a folder or a file) -> the other parts that it imports, sections of a recipe apart."""
    parts: dict[str, set[str]] = {}
    for file, source in sources.items():
        room, part = file.removesuffix(".py").split("/")[:2]
        known = parts.setdefault(part, set())
        for _, module in _imports(ast.parse(source)):
            if module.startswith(f"{room}.") and not module.endswith(".config"):
                known.add(module.split(".")[1])
        known.discard(part)
    return parts


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/packing.py", "from actors.rollout import x"),
        ("core/packing.py", "import orchestration.cli"),
        ("actors/rollout.py", "from learner.batch import Batch"),
        ("learner/batch.py", "import actors.rollout as rollout"),
        ("learner/batch.py", "from orchestration.recipe.config import Recipe"),
        ("actors/rollout.py", "from .prompts import Prompt"),
        ("actors/rollout.py", "from vllm import LLM"),
        ("actors/rollout.py", "from vllm.sampling_params import SamplingParams"),
        ("actors/sampler.py", "import ray"),
        ("learner/learner.py", "import deepspeed"),
        ("orchestration/loop/trainer.py", "import ray.util.placement_group"),
        ("orchestration/loop/trainer.py", "def f():\n    # Heavy.\n    import ray"),
        ("orchestration/cli.py", "import rich"),
        ("core/metrics/contract.py", "from prometheus_client import Counter"),
        ("orchestration/loop/trainer.py", "async def f(worker):\n    await worker.step.remote(1)"),
        ("orchestration/loop/trainer.py", "def f():\n    import json"),
        ("orchestration/loop/trainer.py", "# A comment further up.\ndef f():\n    x = 1\n    import json"),
        ("learner/config.py", "import torch"),
        ("orchestration/recipe/config.py", "from orchestration.loop.trainer import Trainer"),
        ("actors/__init__.py", "from actors.config import RolloutConfig"),
        ("actors/rollout.py", "x = 1\n" * 301),
    ],
)
def test_breaking_a_rule_is_noticed(file: str, source: str) -> None:
    assert len(list(violations(file, source))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "orchestration/cluster/launch.py",
            "import ray\nfrom actors.worker import RolloutWorker\nray.remote(RolloutWorker)",
        ),
        ("actors/sampler.py", "from vllm import LLM\nfrom core.messages import Prompt\nimport actors.config"),
        ("learner/learner.py", "def f():\n    import json  # unused elsewhere"),
        (
            "learner/learner.py",
            "def f():\n    # Heavy, and needed here only.\n    import torch\n    from json import x",
        ),
        (
            "learner/learner.py",
            "def f():\n    # Heavy, and needed here only.\n    import torch\n\n    from core.models import x",
        ),
        ("core/config.py", "import typing\nfrom pydantic import BaseModel"),
        ("orchestration/recipe/config.py", "from orchestration.alarm.config import AlarmConfig"),
        ("actors/__init__.py", ""),
        ("actors/rollout.py", "x = 1\n" * 300),
    ],
)
def test_keeping_the_rules_is_no_offence(file: str, source: str) -> None:
    assert list(violations(file, source)) == []
