"""What the learner's ranks need of a recipe."""

from pathlib import Path

from actors.config import RewardModelReward
from actors.decoding import decoding_of
from learner.algorithm_config import PPOConfig
from learner.worker import LearnerSetup
from orchestration.config import Recipe
from orchestration.inputs import RunInputs


def learner_setup(recipe: Recipe, inputs: RunInputs) -> LearnerSetup:
    """The same for every rank."""
    return LearnerSetup(
        model_path=inputs.model_path,
        model=recipe.model,
        value_model_path=value_model_path(recipe, inputs.reward_paths),
        config=recipe.learner,
        algorithm=recipe.algorithm,
        kl=recipe.kl,
        decoding=decoding_of(recipe.rollout),
        max_new_tokens=recipe.rollout.max_new_tokens,
        seed=recipe.seed,
        pretraining=inputs.pretraining,
        num_steps=recipe.trainer.steps,
        probe_token_ids_T=inputs.probe_token_ids(recipe.model.max_model_len),
        max_probe_gap=recipe.weight_push.max_probe_gap,
        deadline_s=recipe.deadlines.start_s,
    )


def value_model_path(recipe: Recipe, reward_paths: dict[str, Path]) -> Path | None:
    """The value model starts from the reward model with the largest weight."""
    if not isinstance(recipe.algorithm, PPOConfig):
        return None
    models = [reward for reward in recipe.rewards if isinstance(reward, RewardModelReward)]
    return reward_paths[f"reward-{max(models, key=lambda reward: reward.weight).name}"]
