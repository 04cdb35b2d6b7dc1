"""The kinds of failure that Leash tells apart from its own bugs."""


class UserError(ValueError):
    """Bad input. The message says where, what is wrong and what to do instead; the command exits with 2."""


class WorkerError(RuntimeError):
    """Another process failed or did not answer in time. The message names it; the command exits with 1."""


class NonFiniteError(WorkerError):
    """A loss, gradient or weight is NaN or infinite. Raised before the weights change."""
