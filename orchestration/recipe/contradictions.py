"""What is wrong only between the sections of a recipe: each is valid, together they are not.

A rule is a function whose parameters are named after the sections that it reads, so that it still runs when
another section is invalid and all that is wrong with a recipe is reported at once.
"""

import inspect
from collections.abc import Mapping

from orchestration.recipe.contradiction import Contradiction as Contradiction
from orchestration.recipe.kl_rules import KL_RULES
from orchestration.recipe.method_rules import METHOD_RULES
from orchestration.recipe.revision_rules import REVISION_RULES
from orchestration.recipe.reward_rules import REWARD_RULES
from orchestration.recipe.run_rules import RUN_RULES, START_RULES


def contradictions(sections: Mapping[str, object], *, has_started: bool = False) -> list[Contradiction]:
    """Every broken rule among these valid sections, by name. Rules about other sections are skipped, and those of
    how a run starts once it has."""
    found: list[Contradiction] = []
    for check in (
        *METHOD_RULES,
        *REWARD_RULES,
        *KL_RULES,
        *REVISION_RULES,
        *RUN_RULES,
        *(() if has_started else START_RULES),
    ):
        names = inspect.signature(check).parameters
        if sections.keys() >= names.keys():
            found.extend(check(**{name: sections[name] for name in names}))
    return found
