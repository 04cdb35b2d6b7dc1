"""Recipes of runs that are never started."""

MINIMAL = """
name = "tiny"
[model]
path = "asset:tiny"
[prompts]
kind = "movie-reviews"
[[rewards]]
kind = "function"
name = "length"
function = "rewards:length"
[algorithm]
kind = "rloo"
[trainer]
steps = 2
prompts_per_step = 3
"""
"""The shortest that is valid."""

MANY_WORKERS = """
name = "tiny"
[model]
path = "asset:tiny"
[prompts]
kind = "movie-reviews"
[rollout]
workers = 2
resources = { num_cpus = 1.5, num_gpus = 1.0 }
[learner]
world_size = 2
resources = { num_cpus = 2.0 }
[[rewards]]
kind = "function"
name = "length"
function = "rewards:length"
replicas = 2
[[rewards]]
kind = "model"
name = "small"
path = "small"
weight = 0.5
[[rewards]]
kind = "model"
name = "large"
path = "large"
weight = 2.0
[algorithm]
kind = "ppo"
[trainer]
steps = 2
prompts_per_step = 4
"""
"""Two learner ranks, and more than one process of most kinds."""
