"""`leash serve-reward`: one reward of a recipe, served over HTTP apart from any run, until it is told to end."""

import difflib
import signal
import sys
from pathlib import Path

from actors.config import RewardFunctionReward, RewardModelReward
from actors.reward_service.scoring_process import RewardSource, ScoringProcess
from actors.reward_service.server import make_app, make_server
from actors.reward_service.service import Limits, RewardService
from actors.reward_service.token_file import read_or_create_token
from core.errors import UserError
from core.http_server import listen, url_of
from orchestration.assets import cache_folder, resolve_model
from orchestration.recipe.config import Recipe


def serve_reward(
    recipe: Recipe,
    name: str | None,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    deadline_s: float,
) -> None:
    """Load the reward, say where it is served, and serve it until SIGTERM or Ctrl-C."""
    reward = _chosen(recipe, name)
    token_file = token_file or cache_folder() / "reward-token"
    token = read_or_create_token(token_file)
    source = RewardSource(
        config=reward,
        path=_model_folder(recipe, reward),
        model_path=_policy_folder(recipe) if isinstance(reward, RewardModelReward) else Path(),
        model=recipe.model,
    )
    process = ScoringProcess(source, deadline_s=deadline_s, start_s=recipe.deadlines.start_s)
    with listen(host, port) as listener:
        # uvicorn answers who still waits, then raises the signal again.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            process.start()
            service = RewardService(reward.name, process, _limits(recipe, reward, deadline_s))
            address = url_of(host, listener.getsockname()[1])
            print(f"reward {reward.name} at {address}, token in {token_file}", flush=True)
            make_server(make_app(service, token)).run(sockets=[listener])
        finally:
            process.close()


def _chosen(recipe: Recipe, name: str | None) -> RewardModelReward | RewardFunctionReward:
    """The reward of this name, or the only one."""
    rewards = {reward.name: reward for reward in recipe.rewards}
    if name is None and len(rewards) > 1:
        raise UserError(f"{recipe.name}: has the rewards {', '.join(rewards)}; choose one with --reward")
    name = name or next(iter(rewards))
    if name not in rewards:
        close = difflib.get_close_matches(name, rewards, n=1, cutoff=0) or list(rewards)
        raise UserError(f"--reward {name}: {recipe.name} has no such reward; did you mean {close[0]}?")
    reward = rewards[name]
    if not isinstance(reward, RewardModelReward | RewardFunctionReward):
        raise UserError(f"--reward {name}: is served at {reward.url} already; choose a model or a function")
    return reward


def _policy_folder(recipe: Recipe) -> Path:
    return resolve_model(recipe.model.path, recipe.model.revision)


def _model_folder(recipe: Recipe, reward: RewardModelReward | RewardFunctionReward) -> Path | None:
    if not isinstance(reward, RewardModelReward):
        return None
    if reward.path is not None:
        return resolve_model(reward.path, reward.revision, table=f"rewards.{recipe.rewards.index(reward)}")
    # torch and transformers; a function, or a model that is there, is served without them in this process.
    from orchestration.inputs import train_reward_model

    return train_reward_model(recipe)


def _limits(recipe: Recipe, reward: RewardModelReward | RewardFunctionReward, deadline_s: float) -> Limits:
    if isinstance(reward, RewardModelReward):
        return Limits(
            deadline_s=deadline_s,
            batch_tokens=reward.token_budget,
            max_tokens=recipe.model.max_model_len,
        )
    return Limits(deadline_s=deadline_s)
