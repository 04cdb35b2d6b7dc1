"""Metrics of what each worker does, and of what was lost and done again."""

from core.metrics.contract import Healthy, Metric, Panel

WORKERS = Panel(
    "Workers", "workers", "By kind and state. Only those that serve are of use.", in_overview=True
)
ENGINE_REQUESTS = Panel("Requests in the engines", "workers", "Waiting requests: the engine is full.")
ENGINE_CACHE = Panel(
    "KV cache of the engines", "workers", "Near 1, requests are preempted: give it more memory."
)
PREFIX_CACHE = Panel("Prefix cache of the engines", "workers", "Prompt tokens found in it are saved work.")
PREEMPTIONS = Panel("Preemptions", "workers", "Lost work: the KV cache was full.")
MEMORY = Panel("Memory", "workers", "Of every process. Steady after the first steps.")
CPU = Panel("CPU", "workers", "Of every process: cores in use, and on the live page seconds of a step.")
GPU_MEMORY = Panel(
    "GPU memory", "workers", "Full is well for an engine; for the learner, the next step may fail."
)
GPU = Panel("GPU", "workers", "Near 0 for long: it waits for the others.")
FAULTS = Panel("Restarts and retries", "reliability", "What died and what was done again.", in_overview=True)
DROPS = Panel("Dropped and refused", "reliability", "What was sampled and not trained on, by reason.")
CHECKPOINTS = Panel("Checkpoints", "reliability", "What a crash would cost: the time since the last one.")

WORKER_METRICS = (
    Metric(
        name="leash_workers",
        kind="gauge",
        help="Workers, by kind and by state",
        panel=WORKERS,
        labels=("kind", "state"),
    ),
    Metric(
        name="leash_engine_running",
        kind="gauge",
        help="Sequences that an engine decodes, by worker",
        panel=ENGINE_REQUESTS,
        owner="rollout",
        labels=("worker",),
        record="engine_running_{worker}",
    ),
    Metric(
        name="leash_engine_waiting",
        kind="gauge",
        help="Sequences that wait for a place in an engine, by worker",
        panel=ENGINE_REQUESTS,
        owner="rollout",
        labels=("worker",),
        record="engine_waiting_{worker}",
    ),
    Metric(
        name="leash_engine_kv_cache_fraction",
        kind="gauge",
        unit="ratio",
        help="Share of an engine's KV cache in use, by worker, mean since the last heartbeat",
        panel=ENGINE_CACHE,
        owner="rollout",
        labels=("worker",),
        record="kv_cache_{worker}_fraction",
    ),
    Metric(
        name="leash_engine_kv_cache_max_fraction",
        kind="gauge",
        unit="ratio",
        help="The same by worker, the largest since the last heartbeat",
        panel=ENGINE_CACHE,
        owner="rollout",
        labels=("worker",),
        record="kv_cache_max_{worker}_fraction",
        healthy=Healthy(
            None, 0.98, "the cache is full: fewer max_concurrent_sequences, or more memory for it"
        ),
    ),
    Metric(
        name="leash_engine_preemptions_total",
        kind="counter",
        help="Sequences that had to give way and are computed again, by worker",
        panel=PREEMPTIONS,
        owner="rollout",
        labels=("worker",),
        record="preemptions_{worker}",
    ),
    Metric(
        name="leash_engine_prefix_queries_total",
        kind="counter",
        unit="tokens",
        help="Prompt tokens looked up in the prefix cache, by worker",
        panel=PREFIX_CACHE,
        owner="rollout",
        labels=("worker",),
        record="prefix_queries_{worker}_tokens",
    ),
    Metric(
        name="leash_engine_prefix_hits_total",
        kind="counter",
        unit="tokens",
        help="Prompt tokens found there, by worker",
        panel=PREFIX_CACHE,
        owner="rollout",
        labels=("worker",),
        record="prefix_hits_{worker}_tokens",
    ),
    Metric(
        name="leash_worker_memory_bytes",
        kind="gauge",
        unit="bytes",
        help="Memory of a process, its share of what it shares included, by slot such as rollout-0",
        panel=MEMORY,
        owner="every worker",
        labels=("worker",),
        record="memory_{worker}_bytes",
    ),
    Metric(
        name="leash_worker_cpu_seconds_total",
        kind="counter",
        unit="seconds",
        help="CPU time of a process, by worker",
        panel=CPU,
        owner="every worker",
        labels=("worker",),
        record="cpu_{worker}_s",
    ),
    Metric(
        name="leash_worker_gpu_memory_bytes",
        kind="gauge",
        unit="bytes",
        help="Memory in use on the GPUs that a process may use, whoever uses it, by worker",
        panel=GPU_MEMORY,
        owner="every worker",
        labels=("worker",),
        record="gpu_memory_{worker}_bytes",
    ),
    Metric(
        name="leash_worker_gpu_busy_fraction",
        kind="gauge",
        unit="ratio",
        help="Share of the last moment in which its GPUs computed, by worker",
        panel=GPU,
        owner="every worker",
        labels=("worker",),
        record="gpu_busy_{worker}_fraction",
    ),
    Metric(
        name="leash_worker_restarts_total",
        kind="counter",
        help="Workers that died and were replaced, by kind",
        panel=FAULTS,
        labels=("kind",),
        record="restarts_{kind}",
    ),
    Metric(
        name="leash_retries_total",
        kind="counter",
        help="Work that was given to another worker because one was lost on it, by kind",
        panel=FAULTS,
        labels=("kind",),
        record="retries_{kind}",
    ),
    Metric(
        name="leash_groups_discarded_total",
        kind="counter",
        help="Rollout groups replaced by another prompt's, by reason: no spread, workers lost, reward failed",
        panel=DROPS,
        labels=("reason",),
    ),
    Metric(
        name="leash_groups_refused_total",
        kind="counter",
        help="Rollout groups that came twice, or from a worker that had lost its lease, and were turned away",
        panel=DROPS,
    ),
    Metric(
        name="leash_checkpoint_seconds",
        kind="gauge",
        unit="seconds",
        help="Writing the last checkpoint",
        panel=CHECKPOINTS,
    ),
    Metric(
        name="leash_checkpoint_bytes",
        kind="gauge",
        unit="bytes",
        help="Size of the last checkpoint",
        panel=CHECKPOINTS,
        record="checkpoint_bytes",
    ),
    Metric(
        name="leash_checkpoint_age_seconds",
        kind="gauge",
        unit="seconds",
        help="From the last checkpoint, or from when the run was resumed, to the last step",
        panel=CHECKPOINTS,
        record="checkpoint_age_s",
    ),
    Metric(
        name="leash_checkpoint_timestamp_seconds",
        kind="gauge",
        unit="seconds",
        help="When the last checkpoint was committed, since 1970",
        panel=CHECKPOINTS,
    ),
)
