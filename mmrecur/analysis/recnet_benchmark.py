"""Compare RecNet with the plain loop of the paper's equations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.analysis.benchmark import Timing, evaluation_call, inference_form, measure, training_call
from mmrecur.models.backbones import RecNet
from mmrecur.models.layers import RecurrentModule

#: Limits of the time and the memory over those of the plain loop, by device and form.
LIMITS = {
    ('cpu', 'inference form'): (0.85, 0.5),
    ('cpu', 'training step'): (0.95, 0.8),
    ('cuda', 'inference form'): (1 / 2, 0.5),
    ('cuda', 'training step'): (1 / 1.5, 0.8),
}


class PlainModule(nn.Module):
    """Compute Equations 1 to 3 and 6 literally, with the parameters of a module.

    The whole output of the CRC layer is stored before the transition block runs.

    Args:
        module (RecurrentModule): Module whose parameters are used.
    """

    def __init__(self, module: RecurrentModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        crc, states, h = self.module.crc, [], None
        for i, part in enumerate(x.split(crc.in_channels, dim=1)):
            total = crc.conv_x(part)
            if h is not None:
                total = total + crc.conv_h(h)
            h = F.relu(crc.norms[i](total))
            states.append(h)
        return F.relu(self.module.norm(self.module.conv(torch.cat(states, dim=1))))


def plain_recnet(model: RecNet) -> RecNet:
    """Return a copy of a RecNet whose modules are :class:`PlainModule`."""
    model = copy.deepcopy(model)
    for i in range(model.num_stages):
        stage = getattr(model, f'layer{i + 1}')
        setattr(model, f'layer{i + 1}', nn.Sequential(*map(PlainModule, stage)))
    return model


def time_recnet(
    model: RecNet, x: Tensor, train: bool, rounds: int = 12, compiled: bool = False, cuda_graphs: bool = False
) -> list[Timing]:
    """Time the plain loop and this package's RecNet in turn.

    Args:
        model (RecNet): The network.
        x (Tensor): Batch of shape (N, C, H, W).
        train (bool): Time a training step instead of the inference form.
        rounds (int): Number of timed rounds. Defaults to 12.
        compiled (bool): Compile both with ``torch.compile``. Defaults to False.
        cuda_graphs (bool): Replay this package's RecNet as a CUDA graph. Defaults to False.

    Returns:
        list[Timing]: Timings of the plain loop and of this package's RecNet.
    """
    reference = plain_recnet(model)
    ours = model if train else inference_form(model)
    if compiled:
        reference, ours = torch.compile(reference), torch.compile(ours)
    if not train:
        call = _graph_call(ours, x) if cuda_graphs else evaluation_call(ours, x)
        return measure([evaluation_call(reference, x), call], x.device, rounds)
    if cuda_graphs:
        ours = torch.cuda.make_graphed_callables(ours, (x,))
    return measure([training_call(reference, x), training_call(ours, x)], x.device, rounds)


def _graph_call(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Record a forward pass without gradients as a CUDA graph and return its replay."""
    for _ in range(3):
        with torch.no_grad():
            model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        model(x)
    return graph.replay
