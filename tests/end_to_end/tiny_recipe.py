"""The recipe of a run of tiny models, which every test of whole runs changes as it needs."""

from pathlib import Path

LETTER_E = """\
[[rewards]]
kind = "function"
name = "letter_e"
function = "tests.end_to_end.reward_functions:letter_e"
"""
TASTE = """\
[[rewards]]
kind = "model"
name = "taste"
path = "{reward_model}"
resources = {{ num_cpus = 0.2, threads = 1 }}
"""
TINY = """\
name = "tiny"

[model]
path = "{model}"
max_model_len = 64

[prompts]
kind = "jsonl"
path = "{prompts}"
heldout_fraction = 0.5

[rollout]
group_size = 4
max_new_tokens = 8
resources = {{ num_cpus = 0.2, threads = 1 }}

[reference]
resources = {{ num_cpus = 0.2, threads = 1 }}

[algorithm]
kind = "rloo"

[learner]
learning_rate = 1e-3
resources = {{ num_cpus = 0.2, threads = 1 }}

[trainer]
steps = 3
prompts_per_step = 4
heldout_prompts = 20
"""


def write_tiny_recipe(file: Path, changes: str, *, model: Path, prompts: Path) -> Path:
    """A recipe in this file that says only the changes, in TOML; its base, rewarded by LETTER_E, is beside it."""
    base = file.with_name("base.toml")
    base.write_text(TINY.format(model=model, prompts=prompts) + LETTER_E, encoding="utf-8")
    file.write_text(f'base = "{base.name}"\n{changes}', encoding="utf-8")
    return file
