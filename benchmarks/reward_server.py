"""How many completions a second a reward server scores, and how long one waits: clients that ask in a loop.

The reward is a function that costs nothing, so what is measured is everything else: HTTP, checks, the queue, and
the pipe to the scoring process. Server and clients share this machine.

    python -m benchmarks.reward_server [--seconds 5] [--clients 1 8 32] [--batches 1 32 256]
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from actors.config import RewardFunctionReward, RewardServerReward
from actors.reward_service.client import HttpReward
from actors.reward_service.messages import ScoreRequest, completion_of
from actors.reward_service.scoring_process import RewardSource, ScoringProcess
from actors.reward_service.server import make_app, make_server
from actors.reward_service.service import Limits, RewardService
from benchmarks.measuring import print_table
from core.config import ModelConfig
from core.http_server import listen

TOKEN = "a-token-of-the-benchmark"
PROMPT_TOKENS, COMPLETION_TOKENS = 64, 128


def length(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """The reward."""
    return [float(len(text)) for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each line of the table")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    args = parser.parse_args()
    rows = {}
    with serving() as url:
        for batch in args.batches:
            for clients in args.clients:
                latencies_s, took_s = ask(url, clients, batch, args.seconds)
                rows[f"{clients} x {batch}"] = [
                    f"{len(latencies_s) / took_s:.0f}",
                    f"{len(latencies_s) * batch / took_s:.0f}",
                    *(f"{1000 * statistics.quantiles(latencies_s, n=100)[p - 1]:.1f}" for p in (50, 99)),
                ]
    header = ["clients x batch", "requests/s", "completions/s", "p50 ms", "p99 ms"]
    print_table(f"reward server, completions of {PROMPT_TOKENS} + {COMPLETION_TOKENS} tokens", header, rows)


def ask(url: str, clients: int, batch: int, seconds: float) -> tuple[list[float], float]:
    """(seconds of each request, seconds in all) of clients that each ask again as soon as they are answered."""
    item = ScoreRequest(
        prompt="word " * PROMPT_TOKENS,
        completion="word " * COMPLETION_TOKENS,
        prompt_token_ids=[12345] * PROMPT_TOKENS,
        completion_token_ids=[12345] * COMPLETION_TOKENS,
    )
    completions = [completion_of(item)] * batch
    latencies_s: list[float] = []
    with tempfile.NamedTemporaryFile("w", suffix=".token") as file:
        file.write(TOKEN)
        file.flush()
        config = RewardServerReward(kind="http", name="far", url=url, token_file=file.name)
        rewards = [HttpReward(config) for _ in range(clients)]
    rewards[0].score(completions)  # warm
    until = time.perf_counter() + seconds

    def loop(reward: HttpReward) -> None:
        while (started := time.perf_counter()) < until:
            reward.score(completions)
            latencies_s.append(time.perf_counter() - started)

    threads = [threading.Thread(target=loop, args=(reward,)) for reward in rewards]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies_s, time.perf_counter() - began


@contextmanager
def serving() -> Iterator[str]:
    """A server in a process of its own; its address."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))  # not a daemon: it has a process of its own
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection) -> None:
    config = RewardFunctionReward(kind="function", name="length", function="benchmarks.reward_server:length")
    source = RewardSource(config=config, path=None, model_path=Path(), model=ModelConfig(path="unused"))
    scoring = ScoringProcess(source, deadline_s=60, start_s=60)
    scoring.start()
    with listen("127.0.0.1", 0) as listener:
        pipe.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        make_server(make_app(RewardService("length", scoring, Limits()), TOKEN)).run(sockets=[listener])


if __name__ == "__main__":
    main()
