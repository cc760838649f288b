"""Gates and maps for the tests of loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmrecur.models.layers import GumbelGate


def random_gate(channels: int, hidden_channels: int = 0) -> GumbelGate:
    """A gate that decides differently for different samples."""
    torch.manual_seed(0)
    gate = GumbelGate(channels, hidden_channels)
    nn.init.normal_(gate.fc2.weight, std=30)
    nn.init.zeros_(gate.fc2.bias)
    return gate


def maps(batch_size: int = 6) -> Tensor:
    return torch.randn(batch_size, 8, 5, 5, generator=torch.Generator().manual_seed(1)).double()
