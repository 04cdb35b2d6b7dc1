"""A plan for people to read."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestration.planning.fit import gib
from orchestration.recipe.text import toml_value


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Every line of it."""
    yield f"{plan['recipe']}: {plan['model']['parameters']:,} parameters ({plan['model']['source']})"
    yield from ["", "set by the recipe (everything else is the default)"]
    width = max(len(_assignment(setting)) for setting in plan["settings"])
    yield from (f"  {_assignment(each):<{width}}  {each['source']}" for each in plan["settings"])
    yield from _process_lines(plan)
    yield from _step_lines(plan)
    for title, key in (("unsafe", "unsafe"), ("assumed", "notes")):
        if plan[key]:
            yield from ["", title, *(f"  {line}" for line in plan[key])]
    yield ""
    if plan["problems"]:
        yield from ["does not fit", *(f"  {line}" for line in plan["problems"])]
        yield f"  {_advice(plan['change'])}"
    else:
        yield f"fits: {_against(plan['host'])}"


def _process_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    host = plan["host"]
    yield from [
        "",
        f"processes, {host['cpus']:g} CPUs and {host['gpus']:g} GPUs in all, by what each needs at most",
    ]
    for process in plan["processes"]:
        asks = f"{process['cpus']:g} CPU, {process['gpus']:g} GPU"
        needs = f"{gib(process['total_bytes'])} of {process['memory']}"
        yield f"  {process['count']} x {process['kind']} ({asks}): {needs}"
        for what, size in process["parts_bytes"].items():
            yield f"      {gib(size):>10}  {what}"
        if process["host_bytes"]:
            yield f"      {gib(process['host_bytes']):>10}  in the host's memory"
        if process["kind"] == "rollout":
            yield from _cache_lines(plan["engine"])
    yield f"  memory of the host, if all are on one: {gib(host['ram_bytes'])}"


def _cache_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    if engine["cache_bytes"] is not None:
        kib_per_token = engine["kv_bytes_per_token"] / 1024
        yield (
            f"      {gib(engine['cache_bytes']):>10}  key-value cache, {kib_per_token:g} KiB a token: "
            f"{engine['longest_sequences_in_cache']} sequences of the greatest length; "
            f"{engine['max_concurrent_sequences']} are sampled at a time"
        )


def _step_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    step, lag = plan["step"], plan["lag"]
    yield from ["", "a step, at most"]
    yield (
        f"  {step['rollouts']:,} rollouts, {step['sampled_tokens']:,} sampled tokens, {step['tokens']:,} with "
        f"prompts, in rows of {step['tokens_of_a_row']:,}; {step['updates']} updates"
    )
    yield f"  weight push {gib(step['push_bytes'])} through /dev/shm; checkpoint {gib(step['checkpoint_bytes'])}"
    yield (
        f"  lag: {lag['steps']} steps ({lag['groups']} groups, {lag['rollouts']} rollouts); "
        f"{lag['groups_in_flight']} groups in flight"
    )


def _assignment(setting: Mapping[str, Any]) -> str:
    return f"{setting['key']} = {toml_value(setting['value'])}"


def _advice(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "no change of up to three keys that save memory is enough: take a larger machine or a smaller model"
    return (
        f"smallest change that would fit: {' '.join(override(key, value) for key, value in change.items())}"
    )


def override(key: str, value: object) -> str:
    """A changed key as `leash` takes it on the command line."""
    text = f"{key}={toml_value(value)}"
    return f"'{text}'" if " " in text else text


def _against(host: Mapping[str, Any]) -> str:
    bounds = [
        f"{gib(host[key])} of {name}"
        for key, name in (("available_gpu_bytes", "memory on each GPU"), ("available_ram_bytes", "RAM"))
        if host[key] is not None
    ]
    return " and ".join(bounds)
