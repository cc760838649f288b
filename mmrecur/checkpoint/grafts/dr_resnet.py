"""Plain networks grafted into networks with loops, where each iteration stands for a plain block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.align import align_blocks
from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.grafts.loop_fit import (
    Merged,
    average,
    convolutions,
    errors_on_images,
    least_squares,
    one_block,
    plain_weights,
)
from mmrecur.checkpoint.grafts.mobilenet_names import mobilenet_names
from mmrecur.checkpoint.grafts.plain_network import plain_network
from mmrecur.checkpoint.grafts.relaxation import fit_relaxation
from mmrecur.checkpoint.grafts.shared_layers import FITTED
from mmrecur.errors import TransferError
from mmrecur.models.backbones.loop_backbone import LoopBackbone
from mmrecur.models.layers.loop.block import LoopBlock
from mmrecur.models.layers.loop.relaxed import RelaxedConv2d

_NORM_LEAVES = r'weight|bias|running_mean|running_var|num_batches_tracked'

#: Without images, a loop takes the average of its blocks if its error is at most this share of the error
#: for independent weights, sqrt(1 - 1/n).
ALIKE = 0.5


@register_graft(LoopBackbone)
def graft_loops(transfer: GraftTransfer) -> None:
    """Fill a network with loops from its plain counterpart.

    The blocks of a plain stage, except the first, are assigned in order to the iterations of the stage's
    loops, see :func:`assign_blocks`. An iteration that stands for no block starts as the identity: weight
    and bias of its last norm are zero. With at least as many loops as blocks, the graft is therefore exact.

    The inner channels of the blocks of a loop are brought into one order (:func:`align_blocks`). Their
    convolutions are merged in one of these ways:

    - first: the weights of the first block, with the identity as the other iterations. The iterations must
      have norms of their own;
    - average: the mean of the weights;
    - least squares, which needs ``transfer.images``: the weights whose outputs are closest to those of all
      the blocks, given the feature maps that these read in the plain network. Norms that the iterations do
      not share take up the scale of each channel.

    With images, each loop uses the method whose last feature map is closest to that of the plain blocks;
    without, the first block, or the average if the blocks are alike (:data:`ALIKE`) or share their norms.
    The norms of an iteration are otherwise those of its block; a norm shared by the iterations is the
    average. Gates keep their own initialisation.

    Loops with residuals (``relaxation_rank``) use the average, or with images the first block if it is
    closer. The residuals are the closest of their rank to
    the differences between the blocks and the average. At full rank, each iteration has the convolutions of
    its block.

    The report holds the relative error of each loop: ``||y - y'|| / ||y||`` of the last feature map with
    images, ``||W - W'|| / ||W||`` of the weights without.

    Args:
        transfer (GraftTransfer): The transfer to fill.

    Raises:
        TransferError: If the plain network's blocks are of another kind or width than those in the loops.
    """
    backbone = transfer.backbone
    if hasattr(backbone, 'width_mult'):
        transfer.plain = mobilenet_names(transfer.source)
    if any('.block.' in name for name in transfer.plain):
        _take_all(transfer)  # a network with loops already
        return
    places = assign_blocks(backbone, transfer.plain)
    _check_blocks(transfer, places)
    for loop, blocks in places.items():
        template = backbone.get_submodule(loop).block
        align_blocks(transfer, template, {block: [*convolutions(template)] for block in blocks})
    for name in transfer.backbone_keys():
        if not any(name.startswith(f'{loop}.') for loop in places):
            transfer.take(name)
    network = None if transfer.images is None else plain_network(transfer)
    notes, seen = [], set()
    for loop, blocks in places.items():
        merged, error = _merge(transfer, loop, blocks, _busy(transfer, loop, blocks, seen), network)
        seen.update(blocks)
        _fill_loop(transfer, loop, blocks, merged)
        transfer.report.errors[loop] = error
        notes.append(f'{loop} {error:.1%} ({merged.method})')
    _explain_rest(transfer, {block for blocks in places.values() for block in blocks})
    if notes:
        what = "||y - y'|| / ||y|| of the maps" if network else "||W - W'|| / ||W||"
        transfer.report.notes.append(f'relative error of each loop, {what}: {", ".join(notes)}')


def _explain_rest(transfer: GraftTransfer, used: set[str]) -> None:
    """Explain the gates and the plain blocks that no iteration stands for."""
    for name in transfer.backbone_keys():
        if '.gate.' in name:
            transfer.leave(transfer.prefix + name, 'the plain network has no gates')
    for name, key in transfer.plain.items():
        block = re.match(r'layer\d+\.\d+', name)
        if block and block[0] not in used and key not in transfer.used_sources():
            transfer.drop(key, 'a block that no iteration stands for')


def assign_blocks(backbone: nn.Module, plain: Mapping[str, str]) -> dict[str, list[str]]:
    """Assign a plain block to each iteration of each loop.

    Args:
        backbone (nn.Module): The network with loops.
        plain (Mapping[str, str]): Mapping whose keys are the names of the plain network's parameters.

    Returns:
        dict[str, list[str]]: Names of the blocks of each loop, one for each iteration. If the plain network
        has fewer blocks than the stage has iterations, they are spread evenly over the loops, and the last
        block of a loop repeats.

    Example:
        >>> from mmrecur.models.backbones import DRResNet
        >>> plain = {f'layer4.{i}.conv1.weight': '' for i in range(3)}
        >>> model = DRResNet(35, out_indices=(3,))
        >>> assign_blocks(model, plain)['layer4.1']
        ['layer4.1', 'layer4.2']
    """
    loops: dict[str, list[tuple[str, int]]] = {}
    for name, block in backbone.named_modules():
        if isinstance(block, LoopBlock):
            loops.setdefault(name.split('.')[0], []).extend((name, k) for k in range(block.num_iterations))
    places: dict[str, list[str]] = {}
    for stage, slots in loops.items():
        found = {int(m[1]) for name in plain if (m := re.match(rf'{stage}\.(\d+)\.', name))}
        blocks = [f'{stage}.{index}' for index in sorted(found - {0})]
        if len(blocks) >= len(slots):
            chosen = [
                blocks[round(i * (len(blocks) - 1) / max(1, len(slots) - 1))] for i in range(len(slots))
            ]
            for block, (loop, _) in zip(chosen, slots):
                places.setdefault(loop, []).append(block)
        elif blocks:
            places.update(_spread(blocks, Counter(loop for loop, _ in slots)))
    return places


def _spread(blocks: list[str], iterations: Mapping[str, int]) -> dict[str, list[str]]:
    """Spread blocks over loops with more iterations in all."""
    shares: list[list[str]] = [[] for _ in iterations]
    for index, block in enumerate(blocks):
        shares[index * len(shares) // max(len(blocks), len(shares))].append(block)
    places, before = {}, blocks[0]
    for (loop, count), own in zip(iterations.items(), shares):
        before = own[-1] if own else before
        places[loop] = (own + [before] * count)[:count]
    return places


def _check_blocks(transfer: GraftTransfer, places: Mapping[str, list[str]]) -> None:
    """Raise if the plain blocks lack a convolution of their loop or have it in another shape."""
    for loop, blocks in places.items():
        for conv, module in convolutions(transfer.backbone.get_submodule(loop).block).items():
            for name in (f'{block}.{conv}.weight' for block in blocks):
                wanted = tuple(module.weight.shape)
                found = transfer.source[transfer.plain[name]].shape if name in transfer.plain else None
                if found != wanted:
                    has = 'no' if found is None else tuple(found)
                    raise TransferError(
                        f'the source has {has} {name}, allowed for {loop}: a convolution of shape {wanted}'
                    )


def _take_all(transfer: GraftTransfer) -> None:
    for name in transfer.backbone_keys():
        transfer.take(name)


def _busy(transfer: GraftTransfer, loop: str, blocks: list[str], seen: Collection[str]) -> list[bool]:
    """Return which iterations of a loop stand for their block, rather than for the identity.

    Those that repeat a block do not, if norms of their own can make them the identity.
    """
    if transfer.backbone.get_submodule(loop).loop_norm == 'shared':
        return [True] * len(blocks)
    return [block not in seen and block not in blocks[:i] for i, block in enumerate(blocks)]


def _merge(
    transfer: GraftTransfer, loop: str, blocks: list[str], busy: list[bool], network: nn.Module | None
) -> tuple[Merged, float]:
    """Merge the blocks of a loop and return the error."""
    module = transfer.backbone.get_submodule(loop)
    has_own_norms = module.loop_norm != 'shared'
    if sum(busy) < 2 and has_own_norms:
        return one_block(transfer, module, blocks, busy), 0.0
    only_first = [i == 0 for i in range(len(blocks))]
    mean = average(transfer, module, blocks, busy)
    first = one_block(transfer, module, blocks, only_first) if has_own_norms else mean
    is_relaxed = any(isinstance(conv, RelaxedConv2d) for conv in convolutions(module.block).values())
    if is_relaxed:
        _relax(transfer, module, blocks, busy, mean)
    if network is None:
        weights = [plain_weights(transfer, b, module) if runs else None for b, runs in zip(blocks, busy)]
        error = _distance(weights, mean)
        alike = error < ALIKE * (1 - 1 / sum(busy)) ** 0.5
        return (mean, error) if alike or is_relaxed else (first, _distance(weights, first))
    choices = [first, mean]
    if not is_relaxed:
        choices.append(least_squares(transfer, network, module, blocks, busy))
    errors = errors_on_images(transfer, network, blocks, busy, choices)
    best = min(range(len(choices)), key=errors.__getitem__)
    return choices[best], errors[best]


def _relax(
    transfer: GraftTransfer, module: LoopBlock, blocks: list[str], busy: list[bool], merged: Merged
) -> None:
    """Fit the residuals of a loop to the differences between its blocks and the merged weights."""
    relaxed = {n: m for n, m in convolutions(module.block).items() if isinstance(m, RelaxedConv2d)}
    for iteration, (block, runs) in enumerate(zip(blocks, busy)):
        weights = plain_weights(transfer, block, module) if runs else {}
        for name in relaxed.keys() & weights.keys():
            residual = relaxed[name].relaxations[iteration]
            merged.residuals[iteration, name] = fit_relaxation(weights[name], merged.weights[name], residual)


def _fill_loop(transfer: GraftTransfer, loop: str, blocks: list[str], merged: Merged) -> None:
    """Fill a loop with merged blocks."""
    for conv, weight in merged.weights.items():
        sources = [transfer.plain[f'{block}.{conv}.weight'] for block in dict.fromkeys(blocks)]
        target = f'{transfer.prefix}{loop}.block.{conv}.weight'
        transfer.transform(target, sources, weight.to(transfer.target[target]), merged.method)
    for (iteration, conv), (factors, _) in merged.residuals.items():
        source = transfer.plain[f'{blocks[iteration]}.{conv}.weight']
        for part, tensor in factors.items():
            target = f'{transfer.prefix}{loop}.block.{conv}.relaxations.{iteration}.{part}'
            how = f'residual of the {merged.method}'
            transfer.transform(target, [source], tensor.to(transfer.target[target]), how)
    _fill_norms(transfer, loop, blocks, merged)
    for name in transfer.backbone_keys():
        target = transfer.prefix + name
        if name.startswith(f'{loop}.block.') and target not in transfer.report.transformed:
            if '.relaxations.' in name and name.endswith('.up'):
                transfer.zero(target, 'zeros: no residual at first')
            elif '.relaxations.' in name:
                transfer.leave(target, 'without effect while its other factor is zero')


def _fill_norms(transfer: GraftTransfer, loop: str, blocks: list[str], merged: Merged) -> None:
    inside = f'{loop}.block.'
    for name in transfer.backbone_keys():
        own = re.fullmatch(rf'(\w+)\.(?:(\d+)\.)?({_NORM_LEAVES})', name.removeprefix(inside))
        if not name.startswith(inside) or own is None or own[1] in merged.weights:
            continue
        target, (norm, index, leaf) = transfer.prefix + name, own.groups()
        keys = [transfer.plain.get(f'{block}.{norm}.{leaf}') for block in blocks]
        if None in keys:
            transfer.take(name)
        elif index is None:
            stacked = torch.stack([transfer.source[key] for key in keys])
            shared = stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
            transfer.transform(target, list(dict.fromkeys(keys)), shared, 'the iterations share it: average')
        elif (value := merged.norms[int(index)].get(f'{norm}.{leaf}')) is not None:
            how = FITTED if value.any() else 'zeros: the iteration is the identity at first'
            transfer.transform(target, [keys[int(index)]], value.to(transfer.target[target]), how)
        else:
            transfer.copy(target, keys[int(index)])


def _distance(plain: list[dict[str, Tensor] | None], merged: Merged) -> float:
    """Return the relative distance between the weights of blocks and those of the iterations for them."""
    pairs = [
        (weight, merged.weight(iteration, conv))
        for iteration, own in enumerate(plain)
        for conv, weight in (own or {}).items()
    ]
    off = sum((weight - fitted).square().sum() for weight, fitted in pairs)
    return float((off / sum(weight.square().sum() for weight, _ in pairs)).sqrt())
