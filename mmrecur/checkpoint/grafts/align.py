"""Inner channels of residual blocks brought into one order, so that blocks can share filters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.graft import GraftTransfer
from mmrecur.models.layers.common.inverted_residual import InvertedResidual
from mmrecur.models.layers.common.residual import BasicBlock, Bottleneck
from mmrecur.models.layers.rla.dense_block import DenseLayer
from mmrecur.models.layers.template_bank.blocks import WideBasicBlock

#: Sweeps over the blocks.
SWEEPS = 5
#: For each kind of block, its inner axes: the layers with these channels and the dimension of their weights.
_AXES: dict[type[nn.Module], list[dict[str, int]]] = {
    Bottleneck: [dict(conv1=0, bn1=0, conv2=1), dict(conv2=0, bn2=0, conv3=1)],
    BasicBlock: [dict(conv1=0, bn1=0, conv2=1)],
    WideBasicBlock: [dict(conv1=0, bn2=0, conv2=1)],
    InvertedResidual: [dict(conv1=0, bn1=0, conv2=0, bn2=0, conv3=1)],
    DenseLayer: [dict(conv1=0, norm2=0, conv2=1)],
}
_KNOWN = re.compile(r'(conv|bn|norm)\d\.|downsample\.|attention\.')


def inner_axes(block: nn.Module) -> list[dict[str, int]]:
    for kind, axes in _AXES.items():
        if isinstance(block, kind):
            return axes
    return []


def following_norm(block: nn.Module, conv: str) -> str | None:
    """Return the name of the norm that follows a convolution of a block; None if there is none."""
    if isinstance(block, WideBasicBlock):
        return 'bn2' if conv == 'conv1' else None
    if isinstance(block, DenseLayer):
        return 'norm2' if conv == 'conv1' else None
    return conv.replace('conv', 'bn')


def align_blocks(transfer: GraftTransfer, template: nn.Module, shared: Mapping[str, Collection[str]]) -> None:
    """Permute the inner channels of plain blocks so that their shared convolutions become alike.

    A permutation of the channels between two convolutions of a residual block does not change the network.
    The first block keeps its order. The others take turns: each gets, by linear assignment, the order in
    which its filters are most similar to the sum of the other blocks' filters.

    Args:
        transfer (GraftTransfer): The graft; its ``source`` changes.
        template (nn.Module): A block of the kind.
        shared (Mapping[str, Collection[str]]): For each plain block, those of its convolutions that it
            shares with others.
    """
    blocks = list(shared)
    axes = inner_axes(template)
    names = [[n for n in transfer.plain if n.startswith(f'{block}.')] for block in blocks]
    if not axes or not all(_KNOWN.match(n[len(b) + 1 :]) for b, own in zip(blocks, names) for n in own):
        return
    kernels = [{c: normalised(transfer, template, block, c) for c in shared[block]} for block in blocks]
    orders = _orders(kernels, axes)
    for block, own, order in zip(blocks, names, orders):
        for name in own:
            layer = name[len(block) + 1 :].split('.')[0]
            tensor = transfer.source[transfer.plain[name]]
            for axis, permutation in zip(axes, order):
                if layer in axis and tensor.dim() > axis[layer]:
                    tensor = tensor.index_select(axis[layer], permutation)
            if tensor is not transfer.source[transfer.plain[name]]:
                transfer.reorder(transfer.plain[name], tensor)


def normalised(transfer: GraftTransfer, template: nn.Module, block: str, conv: str) -> Tensor:
    """Return a plain convolution's weight with each filter divided by the deviation of its outputs."""
    weight = transfer.source[transfer.plain[f'{block}.{conv}.weight']].double()
    norm = following_norm(template, conv)
    key = transfer.plain.get(f'{block}.{norm}.running_var')
    if key is None:
        return weight
    return weight / (transfer.source[key].double() + 1e-5).sqrt().view(-1, *[1] * (weight.dim() - 1))


def _orders(kernels: list[dict[str, Tensor]], axes: list[dict[str, int]]) -> list[list[Tensor]]:
    """Return the permutations of each block's inner axes."""
    kernels = [dict(own) for own in kernels]
    orders: list[list[Tensor]] = [[] for _ in kernels]
    device = next(iter(kernels[0].values())).device
    for axis in axes:
        for own, order in zip(kernels, orders):
            size = next((k.size(axis[c]) for c, k in own.items() if c in axis), 0)
            order.append(torch.arange(size, device=device))
    for sweep in range(SWEEPS):
        moved = False
        for index in range(1, len(kernels)):
            # in the first sweep only the blocks that have been aligned already count
            others = kernels[:index] + (kernels[index + 1 :] if sweep else [])
            for number, axis in enumerate(axes):
                best = _best(kernels[index], others, axis)
                if best is None:
                    continue
                moved |= bool((best.diff() != 1).any())
                orders[index][number] = orders[index][number][best]
                for conv, kernel in kernels[index].items():
                    if conv in axis:
                        kernels[index][conv] = kernel.index_select(axis[conv], best)
        if not moved:
            break
    return orders


def _best(own: dict[str, Tensor], others: list[dict[str, Tensor]], axis: dict[str, int]) -> Tensor | None:
    from scipy.optimize import linear_sum_assignment  # its import adds warning filters

    similarity: Tensor | int = 0
    for conv, dim in axis.items():
        if conv in own and (found := [o[conv] for o in others if conv in o]):
            ours, theirs = (k.transpose(0, dim).flatten(1) for k in (own[conv], sum(found)))
            similarity = similarity + theirs @ ours.T
    if not isinstance(similarity, Tensor):
        return None
    order = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1]
    return torch.from_numpy(order).to(similarity.device)
