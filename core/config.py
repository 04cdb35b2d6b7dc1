"""The base of every configuration section: frozen, strict, documented field by field."""

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 10**9
"""Of a recipe. Seeds of completions are 10^9 times it and more, and must stay below those of evaluations, 2^60."""


class Section(BaseModel):
    """A table of a recipe. Unknown keys are errors; the doc string under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Resources(Section):
    """What one worker process asks of Ray, so that Ray's autoscaler sees the demand."""

    num_cpus: float = Field(default=0.25, gt=0)
    """CPUs reserved for each process. Fractions share a core: on a laptop the parts take turns."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs reserved for each process."""
    threads: int = Field(default=2, ge=1)
    """Threads of the process's matrix products (OMP_NUM_THREADS). Ray alone would set 1."""

    @property
    def shares_gpu(self) -> bool:
        """Whether others may compute on the process's GPU."""
        return 0 < self.num_gpus < 1


class ModelConfig(Section):
    """The language model that the policy and the reference start from."""

    path: str
    """Folder of a Hugging Face causal LM, its name on the Hub such as `Qwen/Qwen2.5-0.5B-Instruct`, or `asset:NAME`
    for one that `make setup` prepares."""
    revision: str | None = None
    """Commit of a model on the Hub, which a run asks for: all 40 hex digits, since branches and tags move."""
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16)$")
    """`float32` on CPUs (bfloat16 is 2-3 times slower there), `bfloat16` on GPUs."""
    max_model_len: int = Field(default=256, ge=2)
    """Longest prompt plus completion, in tokens."""
