"""The learner against the same model's bare Hugging Face forward and backward, on the same tokens.

    python -m benchmarks.learner [--rounds 7] [--bare packed-full ...] [--profile]

Learner: ZeRO-0 engine, token log-probs of a packed row, clipped PPO loss, backward, optimizer step. Bare:
`AutoModelForCausalLM` with SDPA as transformers ships it, loss and backward, no optimizer. Useful FLOPs leave
out embeddings, logits of tokens that are not trained on, and the masked half of attention.

Dimension key: T token positions of the packed row, N trained tokens, S sequences, L tokens of a sequence.
"""

import argparse
import socket
import time
from collections.abc import Callable

from benchmarks.measuring import Round, enter_worker_environment, interleave, print_table, summary

enter_worker_environment()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from core.models import load_policy  # noqa: E402
from core.packing import PackedRow, pack_row  # noqa: E402
from learner.config import LearnerConfig  # noqa: E402
from learner.engine import ZeroEngine  # noqa: E402
from learner.losses import ppo_policy_loss  # noqa: E402
from learner.process_group import join_group, leave_group  # noqa: E402
from orchestration.assets import resolve_model  # noqa: E402

SEQUENCES, PROMPT_TOKENS, TRAINED_TOKENS = 32, 5, 24
"""One step of the demo: 8 prompts of the first four words of a review, 4 completions of each."""
BARE = ("packed-full", "packed-needed", "batch-full", "batch-needed")
"""One packed row with position ids, or a batch of equal lengths (so without padding); logits everywhere, or
at trained tokens only."""
MATRIX_SIZES = (1024, 2048, 3072)
"""Square float32 products, the fastest of which is the machine's peak."""


class LearnerSide:
    """Forward, loss, backward and optimizer step, as `Learner` does them."""

    def __init__(self, row: PackedRow) -> None:
        path = resolve_model("asset:smollm2-135m-instruct")
        self.engine = ZeroEngine(load_policy(path, "float32"), LearnerConfig(zero_stage=0), dtype="float32")
        self._row = row
        self._mask_N = torch.ones(len(row.target_ids_N), dtype=torch.bool)
        self._advantages_N = torch.randn(len(row.target_ids_N), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self._behavior_N = self.engine(row)

    def __call__(self) -> Round:
        started = time.perf_counter()
        self.forward_backward()
        stepping = time.perf_counter()
        self.engine.step(1e-9)
        return {"learner": stepping - started, "optimizer": time.perf_counter() - stepping}

    def forward_backward(self) -> None:
        loss, _ = ppo_policy_loss(
            self.engine(self._row),
            self._behavior_N,
            self._advantages_N,
            self._mask_N,
            clip_low=0.2,
            clip_high=0.2,
            dual_clip=None,
            aggregation="token",
        )
        self.engine.backward(loss, last=True)


class BareSides:
    """The stock model, in four arrangements of the same tokens."""

    def __init__(self, row: PackedRow) -> None:
        path = resolve_model("asset:smollm2-135m-instruct")
        self._model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="sdpa",
            trust_remote_code=False,
            use_safetensors=True,
        ).train()
        self._row = row
        self._ids_SL = row.token_ids_T.view(SEQUENCES, -1)
        self._labels_T = torch.full_like(row.token_ids_T, -100)
        self._labels_T[row.predicting_N + 1] = row.target_ids_N

    def side(self, name: str) -> Callable[[], Round]:
        arrangement, logits = name.split("-")
        if arrangement == "packed":
            inputs = {
                "input_ids": self._row.token_ids_T[None],
                "position_ids": self._row.position_ids_T[None],
            }
            labels, kept = self._labels_T[None], self._row.predicting_N
        else:
            inputs = {"input_ids": self._ids_SL}
            labels, kept = (
                self._labels_T.view_as(self._ids_SL),
                torch.arange(TRAINED_TOKENS) + PROMPT_TOKENS - 1,
            )

        def run() -> Round:
            self._model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            if logits == "full":
                loss = self._model(**inputs, labels=labels, use_cache=False).loss
            else:
                kept_logits = self._model(**inputs, logits_to_keep=kept, use_cache=False).logits
                loss = F.cross_entropy(kept_logits.flatten(0, 1), self._row.target_ids_N)
            loss.backward()
            return {name: time.perf_counter() - started}

        return run


def matrix_peak() -> Round:
    """FLOP/s of the fastest product; best of three each, because a neighbour only ever slows one down."""
    best = 0.0
    for size in MATRIX_SIZES:
        left, right, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(left, right, out=out)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return {"peak": best}


def useful_flops(module: torch.nn.Module, row: PackedRow) -> float:
    """Of a forward and a backward pass: three times the forward's products."""
    config = module.model.config  # type: ignore[union-attr]
    embedding = config.vocab_size * config.hidden_size  # type: ignore[union-attr,operator]
    body = sum(parameter.numel() for parameter in module.parameters()) - embedding
    length = PROMPT_TOKENS + TRAINED_TOKENS
    attention = config.num_hidden_layers * config.hidden_size * SEQUENCES * length**2  # type: ignore[union-attr,operator]
    return float(6 * body * len(row.token_ids_T) + 6 * embedding * len(row.target_ids_N) + 6 * attention)


def random_row() -> PackedRow:
    length = PROMPT_TOKENS + TRAINED_TOKENS
    ids = np.random.default_rng(0).integers(1000, 49000, size=(SEQUENCES, length), dtype=np.int32)
    return pack_row([(token_ids, np.arange(length) >= PROMPT_TOKENS) for token_ids in ids])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bare", nargs="+", choices=BARE, default=list(BARE))
    parser.add_argument("--profile", action="store_true", help="print where the learner's time goes instead")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_group(rank=0, world_size=1, address="127.0.0.1", port=port, deadline_s=60)
    row = random_row()
    learner, bare = LearnerSide(row), BareSides(row)
    if arguments.profile:
        profile(learner, bare.side(arguments.bare[0]))
    else:
        sides: list[Callable[[], Round]] = [
            matrix_peak,
            learner,
            *(bare.side(name) for name in arguments.bare),
        ]
        report(interleave(sides, rounds=arguments.rounds), row, useful_flops(learner.engine.module, row))
    leave_group()


def report(rounds: list[Round], row: PackedRow, flops: float) -> None:
    tokens = len(row.token_ids_T)
    bare = [name for name in BARE if name in rounds[0]]
    rates = {"learner, without optimizer": summary(rounds, lambda r: tokens / r["learner"], 0)}
    rates["learner, with optimizer"] = summary(rounds, lambda r: tokens / (r["learner"] + r["optimizer"]), 0)
    ratios, shares = {}, {"learner": summary(rounds, lambda r: flops / r["learner"] / r["peak"])}
    for name in bare:
        rates[f"bare {name}"] = summary(rounds, lambda r, n=name: tokens / r[n], 0)  # type: ignore[misc]
        shares[f"bare {name}"] = summary(rounds, lambda r, n=name: flops / r[n] / r["peak"])  # type: ignore[misc]
        ratios[f"without optimizer / bare {name}"] = summary(rounds, lambda r, n=name: r[n] / r["learner"])  # type: ignore[misc]
        ratios[f"with optimizer / bare {name}"] = summary(
            rounds,
            lambda r, n=name: r[n] / (r["learner"] + r["optimizer"]),  # type: ignore[misc]
        )
    columns = ["median", "min", "max"]
    peak = summary(rounds, lambda r: r["peak"] / 1e9, 0)
    print(f"{len(rounds)} rounds, {SEQUENCES} sequences, {tokens} tokens, {len(row.target_ids_N)} trained")
    print_table("tokens a second", ["side", *columns], rates)
    print_table("ratio of tokens a second", ["learner / bare", *columns], ratios)
    print_table(f"share of the matrix-product peak, {peak[0]} GFLOP/s", ["side", *columns], shares)


def profile(learner: LearnerSide, bare: Callable[[], Round]) -> None:
    """The operators that take the time, on both sides."""
    for run in (learner.forward_backward, bare):
        run()
        with torch.profiler.profile() as profiler:
            run()
        print(
            profiler.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=45
            )
        )


if __name__ == "__main__":
    main()
