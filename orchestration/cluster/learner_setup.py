"""What the learner's ranks need of a recipe."""

from actors.decoding import decoding_of
from learner.worker import LearnerSetup
from orchestration.inputs import RunInputs, value_model_source
from orchestration.recipe.config import Recipe


def learner_setup(recipe: Recipe, inputs: RunInputs) -> LearnerSetup:
    """The same for every rank."""
    return LearnerSetup(
        model_source=inputs.model_source,
        model=recipe.model,
        value_model_source=value_model_source(recipe, inputs.reward_sources),
        config=recipe.learner,
        algorithm=recipe.algorithm,
        kl=recipe.kl,
        decoding=decoding_of(recipe.rollout),
        max_new_tokens=recipe.rollout.max_new_tokens,
        seed=recipe.seed,
        pretraining=inputs.pretraining,
        num_steps=recipe.trainer.steps,
        probe_token_ids_T=inputs.probe_token_ids(recipe.model.max_model_len),
        push_adapters=recipe.pushed_adapter_rank is not None,
        max_probe_gap=recipe.max_probe_gap,
        deadline_s=recipe.deadlines.start_s,
    )
