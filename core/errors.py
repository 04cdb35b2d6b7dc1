"""The kinds of failure that Leash tells apart from its own bugs."""


class UserError(ValueError):
    """Bad input. The message says where, what is wrong and what to do instead; the command exits with 2."""


class RewardError(UserError):
    """A reward function raised, or returned something else than a finite number for each completion."""


class WorkerError(RuntimeError):
    """Another process failed or did not answer in time. The message names it; the command exits with 1."""


class WorkerLost(WorkerError):
    """Another process died, or was silent for too long: it has to be replaced. The message names it."""


class WorkerSilent(WorkerLost):
    """Another process did not answer in time. The message says what it was doing, if that could be found out."""


class OverOptimized(WorkerError):
    """The alarm has stopped the run: the policy seems to cheat its reward."""


class LearnerLost(WorkerLost):
    """A rank of the learner died or was silent, and with it the group: it goes on from the last checkpoint."""


class RetriesExhausted(WorkerError):
    """One worker after another was lost on the same piece of work."""


class NoWorkerLeft(WorkerError):
    """No worker of a kind will serve any more."""


class NonFiniteError(WorkerError):
    """A loss, gradient or weight is NaN or infinite. Raised before the weights change."""
