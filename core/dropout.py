"""Dropout, which a network has only where its recipe says so."""

from torch import nn

from core.errors import UserError


def switch_off_dropout(network: nn.Module) -> None:
    """That of the model's own config: with it the learner's policy would not be the one that sampled."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def set_attention_dropout(network: nn.Module, rate: float) -> None:
    """Drop attention weights while in train mode. Raises `UserError` for an architecture that cannot be told to."""
    layers = [layer for layer in network.modules() if hasattr(layer, "attention_dropout")]
    if not layers:
        raise UserError(
            f"learner.dropout = {rate}: the attention of this architecture has no rate that can be set; set 0, or "
            "train adapters ([learner.lora]), which have their own"
        )
    for layer in layers:
        setattr(layer, "attention_dropout", rate)  # noqa: B010 (a plain number, not a module)
