"""Models on the Hub in a run: each process fetches them on its own node, and without a commit nothing starts."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest

from actors import worker as actors_worker
from actors.config import ReferenceConfig, RewardModelReward, RolloutConfig
from actors.worker import ActorSetup, RolloutWorker, ScorerWorker
from core.config import ModelConfig
from core.errors import UserError
from core.hub import HubModel, ModelSource
from learner import worker as learner_worker
from learner.config import LearnerConfig
from learner.worker import LearnerWorker
from orchestration import assets, sampling
from orchestration.assets import resolve_model
from orchestration.cluster import launch
from orchestration.cluster.learner_setup import learner_setup
from orchestration.recipe.loading import load_recipe
from tests.recipes import MANY_WORKERS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = HubModel("lab/tiny", COMMIT)
JUDGE = HubModel("lab/judge", COMMIT)


class Engine:
    """In place of the sampler: keeps what it was made of."""

    made_of: Path

    def __init__(self, path: Path, *rest: Any, **options: Any) -> None:
        Engine.made_of = path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[ModelSource, str | None]]:
    """What is fetched, and on which node."""
    asked: list[tuple[ModelSource, str | None]] = []

    def fetch(source: ModelSource, *, node: str | None = None) -> Path:
        asked.append((source, node))
        return tmp_path / source.name

    for module in (actors_worker, learner_worker, assets):
        monkeypatch.setattr(module, "model_folder", fetch)
    for module in (actors_worker, learner_worker):
        monkeypatch.setattr(module, "node_address", lambda: "10.0.0.7")
    return asked


def setup() -> ActorSetup:
    return ActorSetup(
        model_source=TINY,
        model=ModelConfig(path=TINY.name, revision=COMMIT),
        rollout=RolloutConfig(),
    )


def test_a_rollout_worker_fetches_the_model_on_its_node(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sampler = ModuleType("actors.sampler")
    sampler.Sampler = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "actors.sampler", sampler)
    monkeypatch.setattr(actors_worker, "EngineLoop", lambda *rest, **options: None)
    monkeypatch.setattr(actors_worker, "node_id", lambda: "node")
    assert RolloutWorker(setup()).ready() == "node"
    assert asked == [(TINY, "10.0.0.7")]
    assert Engine.made_of == tmp_path / "lab" / "tiny"


def test_a_node_that_cannot_get_it_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as an engine that does not start, which would be tried again and again."""

    def refuse(source: ModelSource, *, node: str | None = None) -> NoReturn:
        raise UserError(f"node {node}: cannot have {source}")

    for module in (actors_worker, learner_worker):
        monkeypatch.setattr(module, "model_folder", refuse)
        monkeypatch.setattr(module, "node_address", lambda: "10.0.0.7")
    monkeypatch.setattr(learner_worker, "node_interface", lambda: None)
    with pytest.raises(UserError, match="node 10.0.0.7: cannot have .*lab/tiny"):
        RolloutWorker(setup()).ready()
    with pytest.raises(UserError, match="node 10.0.0.7: cannot have .*lab/tiny"):
        asyncio.run(ScorerWorker(setup(), ReferenceConfig(), None).ready())
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    ranks: Any = SimpleNamespace(
        driver_versions=setup().driver_versions,
        config=LearnerConfig(),
        model_source=TINY,
        value_model_source=None,
    )
    with pytest.raises(UserError, match="node 10.0.0.7: cannot have .*lab/tiny"):
        LearnerWorker(0).start(ranks, "10.0.0.7", 1, 1.0)


def test_a_reward_server_fetches_its_model_and_the_policys(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_of: list[Any] = []

    def load(config: Any, path: Path, model_path: Path, model: ModelConfig) -> Any:
        made_of.append((path, model_path))
        return SimpleNamespace(score=None)

    monkeypatch.setattr("actors.rewards.load_reward", load)
    reward = RewardModelReward(kind="model", name="judge", path=JUDGE.name, revision=COMMIT)
    asyncio.run(ScorerWorker(setup(), reward, JUDGE).ready())
    assert asked == [(JUDGE, "10.0.0.7"), (TINY, "10.0.0.7")]
    assert made_of == [(tmp_path / "lab" / "judge", tmp_path / "lab" / "tiny")]


def test_workers_are_told_the_name_and_not_the_drivers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(MANY_WORKERS, encoding="utf-8")
    recipe = load_recipe(tmp_path / "tiny.toml")
    inputs: Any = SimpleNamespace(
        model_source=TINY,
        reward_sources={"reward-small": Path("small"), "reward-large": JUDGE},
        pretraining=None,
        probe_token_ids=lambda length: None,
    )
    told: dict[str, Any] = {}
    monkeypatch.setattr(launch, "RolloutHandle", lambda name, setup, **rest: told.update({name: setup}))
    monkeypatch.setattr(
        launch, "ScorerHandle", lambda name, setup, config, source, **rest: told.update({name: source})
    )
    unwatched: Any = SimpleNamespace(worker_event=None, worker_report=None)
    _, fleets = launch._fleets(recipe, None, "node", inputs, unwatched)
    for kind in ("rollout", "reward-large", "reference"):
        fleets[kind]._launch(kind)
    assert told["rollout"].model_source == TINY
    assert told["reward-large"] == JUDGE
    assert told["reference"] is None
    learner = learner_setup(recipe, inputs)
    assert learner.model_source == TINY
    assert learner.value_model_source == JUDGE


def test_without_a_revision_the_driver_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "how_to_pin", lambda name: f"revision = HASH of {name}")
    with pytest.raises(UserError) as raised:
        resolve_model("lab/tiny", table="rewards.1")
    assert str(raised.value) == (
        "rewards.1.path = lab/tiny: no such folder is there, and a model on the Hugging Face Hub changes, while a "
        "run must be repeatable; add rewards.1.revision = HASH of lab/tiny"
    )


def test_the_driver_resolves_a_model_at_its_commit(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "lab" / "tiny").mkdir(parents=True)
    (tmp_path / "lab" / "tiny" / "config.json").touch()
    assert resolve_model("lab/tiny", COMMIT) == tmp_path / "lab" / "tiny"
    assert asked == [(TINY, None)]


def test_a_saved_policy_is_a_folder_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs/model does not exist"):
        sampling._saved_policy("runs/model")
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "model" / "config.json").touch()
    assert sampling._saved_policy("runs/model") == tmp_path / "runs" / "model"
