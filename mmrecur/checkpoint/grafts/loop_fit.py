"""Ways to merge plain blocks into a loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.align import following_norm
from mmrecur.checkpoint.grafts.graft import GraftTransfer
from mmrecur.checkpoint.grafts.input_statistics import chunks
from mmrecur.checkpoint.grafts.shared_layers import fit_as_a_whole, shared_layers
from mmrecur.models.layers.loop.block import LoopBlock


@dataclass
class Merged:
    """The tensors of a loop's block.

    Attributes:
        method (str): How the blocks were merged, for the report.
        weights (dict[str, Tensor]): Weight of each convolution, in double precision.
        norms (list[dict[str, Tensor]]): For each iteration, the tensors of its norms that differ from the
            plain block's, such as ``bn1.running_mean``.
        residuals (dict): For an iteration and a convolution with a residual, the factors of the residual and
            the weight that the iteration has with it.
    """

    method: str
    weights: dict[str, Tensor]
    norms: list[dict[str, Tensor]]
    residuals: dict[tuple[int, str], tuple[dict[str, Tensor], Tensor]] = field(default_factory=dict)

    def weight(self, iteration: int, conv: str) -> Tensor:
        """Return the weight of a convolution in an iteration."""
        residual = self.residuals.get((iteration, conv))
        return self.weights[conv] if residual is None else residual[1]


def convolutions(block: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions of a block by name."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Conv2d)}


def plain_weights(transfer: GraftTransfer, block: str, loop: LoopBlock) -> dict[str, Tensor]:
    """Return the convolutions' weights of a plain block in double precision."""
    names = convolutions(loop.block)
    return {name: transfer.source[transfer.plain[f'{block}.{name}.weight']].double() for name in names}


def identity_norm(transfer: GraftTransfer, block: str, loop: LoopBlock) -> dict[str, Tensor]:
    """Return the tensors of a block's last norm with which the block is the identity."""
    norm = following_norm(loop.block, [*convolutions(loop.block)][-1])
    names = (f'{norm}.{leaf}' for leaf in ('weight', 'bias'))
    return {n: torch.zeros_like(transfer.source[transfer.plain[f'{block}.{n}']]) for n in names}


def idle_norms(
    transfer: GraftTransfer, loop: LoopBlock, blocks: Sequence[str], busy: Sequence[bool]
) -> list[dict[str, Tensor]]:
    """Return, for each iteration, the norm tensors that make it the identity unless it is busy."""
    return [{} if b else identity_norm(transfer, block, loop) for block, b in zip(blocks, busy)]


def average(transfer: GraftTransfer, loop: LoopBlock, blocks: Sequence[str], busy: Sequence[bool]) -> Merged:
    """Merge the blocks of the busy iterations by the mean of their weights."""
    own = [plain_weights(transfer, block, loop) for block, b in zip(blocks, busy) if b]
    weights = {name: torch.stack([w[name] for w in own]).mean(0) for name in own[0]}
    return Merged(f'average of {len(own)} blocks', weights, idle_norms(transfer, loop, blocks, busy))


def one_block(
    transfer: GraftTransfer, loop: LoopBlock, blocks: Sequence[str], busy: Sequence[bool]
) -> Merged:
    """Give the loop the weights of its first block; iterations that are not busy are the identity."""
    norms = idle_norms(transfer, loop, blocks, busy)
    return Merged('the first block, then the identity', plain_weights(transfer, blocks[0], loop), norms)


def least_squares(
    transfer: GraftTransfer, network: nn.Module, loop: LoopBlock, blocks: Sequence[str], busy: Sequence[bool]
) -> Merged:
    """Merge the blocks of the busy iterations by least squares of their outputs on the images."""
    names = [*convolutions(loop.block)]
    running = list(dict.fromkeys(block for block, b in zip(blocks, busy) if b))
    own_norms = loop.loop_norm != 'shared'
    layers = shared_layers(transfer, network, [f'{b}.{name}' for b in running for name in names], own_norms)
    norms = idle_norms(transfer, loop, blocks, busy)
    weights = {}
    for name in names:
        own = {block: layers[f'{block}.{name}'] for block in running}
        fit, _ = fit_as_a_whole([*own.values()])
        weights[name] = fit.reshape(convolutions(loop.block)[name].weight.shape)
        norm = following_norm(loop.block, name)
        for block, b, values in zip(blocks, busy, norms):
            if b and own[block].norm is not None:
                values.update((f'{norm}.{k}', v) for k, v in own[block].norm_values(fit).items())
    return Merged(f'least squares over {len(running)} blocks', weights, norms)


@torch.no_grad()
def errors_on_images(
    transfer: GraftTransfer,
    network: nn.Module,
    blocks: Sequence[str],
    busy: Sequence[bool],
    choices: Sequence[Merged],
) -> list[float]:
    """Return the relative error of a loop's last feature map for several ways to merge its blocks.

    Args:
        transfer (GraftTransfer): The graft, with images.
        network (nn.Module): The plain network.
        blocks (Sequence[str]): Plain block of each iteration.
        busy (Sequence[bool]): Whether an iteration stands for its block.
        choices (Sequence[Merged]): The ways.

    Returns:
        list[float]: ``||y - y'|| / ||y||`` for each of them.
    """
    last = max(index for index, b in enumerate(busy) if b)
    merged = [
        [_with(network.get_submodule(b), choice, i) for i, b in enumerate(blocks)] for choice in choices
    ]
    maps: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(blocks[0]).register_forward_pre_hook(lambda m, args: maps.update(x=args[0])),
        network.get_submodule(blocks[last]).register_forward_hook(lambda m, args, y: maps.update(y=y)),
    ]
    off, whole = [0.0] * len(choices), 0.0
    for chunk in chunks(transfer.images or [], next(network.parameters())):
        network(chunk)
        whole += maps['y'].double().square().sum().item()
        for index, steps in enumerate(merged):
            off[index] += (nn.Sequential(*steps)(maps['x']) - maps['y']).double().square().sum().item()
    for handle in handles:
        handle.remove()
    return [(value / max(whole, 1e-30)) ** 0.5 for value in off]


def _with(block: nn.Module, merged: Merged, iteration: int) -> nn.Module:
    """Return a copy of a plain block with the tensors of a loop."""
    block = copy.deepcopy(block)
    values: Mapping[str, Tensor] = {
        **{f'{name}.weight': merged.weight(iteration, name) for name in merged.weights},
        **merged.norms[iteration],
    }
    block.load_state_dict(values, strict=False)
    return block
