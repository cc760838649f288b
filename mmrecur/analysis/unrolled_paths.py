r"""Unroll the recurrent paths of RLA: the kernel from each step's input to each later state.

Equation 12 of Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852,
Appendix A.3. Without the non-linearity, the state after step t is

.. math:: h^t = \sum_{l=1}^t g_2^l \circ g_1(y^{t-l+1}) + g_2^t(h^0)

with the 1x1 convolution :math:`g_1 = W_o` and the recurrent one :math:`g_2 = W_r`, so
:math:`g_2^l \circ g_1` is the weight of lag l. If the kernel of ``W_r`` has K x K pixels, this is a single
convolution with a side of ``l (K - 1) + 1`` pixels. Near the border it differs, since every step pads
with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones import RLAMobileNetV2
from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.rla.cell import FusedCell, RecurrentCell, RLACell
from mmrecur.models.layers.rla.multi_width_cell import MultiWidthRLACell
from mmrecur.models.layers.rla.other_cells import PostActRLACell, UnsharedCells

_CELLS = (RecurrentCell, UnsharedCells, MultiWidthRLACell, FusedCell)


@dataclass(frozen=True)
class UnrolledStep:
    """One linear update of the state, ``h = T * (h + O s)`` or ``h = T * h + O s``.

    Attributes:
        readout (Tensor): O, the weight of W_o, shape (k, C).
        transition (Tensor): T, the kernel of W_r including the scale of the norm, shape (k, k, K, K).
        joins_first (bool): Whether T also applies to the new information O s of the same step.
    """

    readout: Tensor
    transition: Tensor
    joins_first: bool = True


def compose(second: Tensor, first: Tensor) -> Tensor:
    """Return the kernel of two convolutions in sequence.

    Args:
        second (Tensor): Kernel of the second convolution, shape (C_out, C, K, K).
        first (Tensor): Kernel of the first convolution, shape (C, C_in, L, L).

    Returns:
        Tensor: Shape (C_out, C_in, K + L - 1, K + L - 1).
    """
    reach = second.size(-1) - 1
    return F.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=reach).transpose(0, 1)


def dense_kernel(conv: nn.Conv2d) -> Tensor:
    """Return the kernel of a convolution in double precision, with zeros between the groups.

    Args:
        conv (nn.Conv2d): The convolution.

    Returns:
        Tensor: Shape (C_out, C_in, K, K).
    """
    weight = conv.weight.detach().double().cpu()
    if conv.groups == 1:
        return weight
    kernel = weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    parts = zip(kernel.chunk(conv.groups, 0), weight.chunk(conv.groups, 0))
    for group, (rows, part) in enumerate(parts):
        rows[:, group * part.size(1) : (group + 1) * part.size(1)] = part
    return kernel


@torch.no_grad()
def unrolled_norms(steps: list[UnrolledStep]) -> np.ndarray:
    """Return the norms of the kernels from the input of each step to each later state.

    Args:
        steps (list[UnrolledStep]): The updates at one resolution, in order.

    Returns:
        np.ndarray: Shape (T, T). Row t, column j holds the L1 norm of the kernel from ``s`` of step j + 1
        to ``h`` after step t + 1, divided by the C feature maps of ``s``; NaN if j > t.
    """
    norms = np.full((len(steps), len(steps)), np.nan)
    alike = all(step is steps[0] for step in steps)
    for j, step in enumerate(steps):
        if j and alike:
            norms[j:, j] = norms[: len(steps) - j, 0]
            continue
        kernel = step.transition
        if not step.joins_first:
            kernel = torch.eye(len(step.readout), dtype=torch.float64)[..., None, None]
        for t in range(j, len(steps)):
            kernel = kernel if t == j else compose(steps[t].transition, kernel)
            # one map of the state at a time: in long stages, all of them at once would take gigabytes
            readout = step.readout.float()
            totals = ((rows.float().flatten(1).t() @ readout).abs().sum() for rows in kernel)
            norms[t, j] = sum(total.item() for total in totals) / readout.size(1)
    return norms


def recurrent_paths(model: nn.Module, with_norms: bool = False) -> dict[str, list[UnrolledStep]]:
    """Find the recurrent paths of RLA in a model.

    Args:
        model (nn.Module): A model with RLA cells, not in its inference form.
        with_norms (bool): Include the scales that the batch norms apply in evaluation mode. Defaults to
            False, as in Equation 12.

    Returns:
        dict[str, list[UnrolledStep]]: The updates by the name of the stage in the model.

    Raises:
        ValueError: If a cell has gates, is in its inference form, or, with ``with_norms``, has norms that
            are not affine maps.
    """
    paths: dict[str, list[UnrolledStep]] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        prefix = f'{name}.' if name else ''
        if isinstance(module, RLAMobileNetV2):
            paths.update(_mobile_paths(module, prefix, with_norms))
        elif isinstance(module, _CELLS):
            label = name.removesuffix('.rla') or type(module).__name__
            paths[label] = _cell_steps(module, label, with_norms)
        else:
            continue
        inside += (prefix,)
    return paths


def _mobile_paths(
    model: RLAMobileNetV2, prefix: str, with_norms: bool
) -> Iterator[tuple[str, list[UnrolledStep]]]:
    """Yield the paths of the five resolutions. The last two span two widths each."""
    for stage in sorted(set(model.recurrent_stages)):
        groups = [i for i in model.recurrent_index if model.recurrent_stages[i] == stage]
        steps: list[UnrolledStep] = []
        for i in groups:
            cell, conv = getattr(model, model.groups[i]).rla, model.recurrent_convs[model.recurrent_index[i]]
            steps += _cell_steps(cell, model.groups[i], with_norms, conv)
        if groups:
            names = [model.groups[i] for i in groups]
            yield prefix + (names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'), steps


def _cell_steps(
    cell: nn.Module, name: str, with_norms: bool, recurrent_conv: nn.Conv2d | None = None
) -> list[UnrolledStep]:
    """Return the updates of a cell; ``recurrent_conv`` is W_r if several cells share it."""
    if isinstance(cell, UnsharedCells):
        return [step for part in cell.steps for step in _cell_steps(part, name, with_norms)]
    if isinstance(cell, MultiWidthRLACell):
        parts = (_cell_steps(part, name, with_norms, cell.recurrent_conv) for part in cell.cells)
        return [step for steps in parts for step in steps]
    if isinstance(cell, FusedCell):
        raise ValueError(f'{name} is in its inference form, allowed: a model before switch_to_deploy()')
    if not isinstance(cell, (RLACell, PostActRLACell)):
        raise ValueError(
            f"{name} has a {type(cell).__name__}, whose gates are not linear, allowed: cells with cell='conv'"
        )
    readout = cell.conv_out.weight.detach().double().cpu().flatten(1)
    kernel = dense_kernel(cell.recurrent_conv if recurrent_conv is None else recurrent_conv)
    joins_first = getattr(cell, 'add_first', True)
    if not with_norms:
        return [UnrolledStep(readout, kernel, joins_first)] * cell.num_steps
    behind = isinstance(cell, PostActRLACell)
    shape = (-1, 1, 1, 1) if behind else (1, -1, 1, 1)
    scales = [_scale(norm, name).view(shape) for norm in cell.norms]
    return [UnrolledStep(readout, kernel * scale, joins_first) for scale in scales]


def _scale(norm: nn.Module, name: str) -> Tensor:
    """Return the factors by which a norm scales the channels."""
    if not is_fusible(norm):
        raise ValueError(
            f'with_norms=True with a {type(norm).__name__} in {name}, allowed: False, or batch norms with '
            'running statistics'
        )
    return norm_affine(norm)[0].double().cpu()
