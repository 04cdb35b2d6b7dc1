"""Which processes a recipe runs, and what each asks of Ray. Imports no Ray, so that a plan can be made at once."""

from dataclasses import dataclass

from core.config import Resources
from orchestration.recipe.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One process to place: its stable name, and what it asks of Ray."""

    name: str
    resources: Resources

    @property
    def kind(self) -> str:
        """Learner, rollout, reference, or reward-NAME."""
        return self.name.rpartition("-")[0]

    @property
    def bundle(self) -> dict[str, float]:
        gpus = {"GPU": self.resources.num_gpus} if self.resources.num_gpus else {}
        return {"CPU": self.resources.num_cpus, **gpus}


def workers_of(recipe: Recipe) -> list[Worker]:
    """Every process that a recipe runs, in the order in which they are placed."""
    counts: list[tuple[str, int, Resources]] = [
        ("learner", recipe.learner.world_size, recipe.learner.resources),
        ("rollout", recipe.rollout.workers, recipe.rollout.resources),
        ("reference", recipe.reference.num_scorers, recipe.reference.resources),
        *((f"reward-{reward.name}", reward.replicas, reward.resources) for reward in recipe.rewards),
    ]
    return [Worker(name=f"{kind}-{i}", resources=res) for kind, count, res in counts for i in range(count)]
