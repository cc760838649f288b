"""Plain networks made into ones with loops: blocks of a stage become iterations of one."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.layouts_mobilenet import mobilenet_names
from mmrecur.checkpoint.transfer import Report
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.errors import TransferError
from mmrecur.models.layers.loop.norm import LoopNorm
from mmrecur.models.layers.loop.recursive_block import RecursiveBlock

#: How the blocks of a loop are made one.
METHODS = ('average', 'least squares')
_NORM_LEAVES = r'weight|bias|running_mean|running_var|num_batches_tracked'


@register_graft('RecursiveBackbone')
def graft_dr(transfer: GraftTransfer, images: Tensor | None = None) -> None:
    """Fill a network with loops from its plain counterpart.

    Of each stage the blocks but the first are dealt out to the loops in order: as many as a loop has
    iterations to each, spread evenly where the plain network has more or fewer. A loop's convolutions are
    made of those of its blocks:

    - ``'average'``: the mean of the weights;
    - ``'least squares'``, with ``images``: the weights whose outputs are closest to those of all the blocks'
      convolutions on the maps that these read in the plain network, taken together.

    With ``images`` the loop takes what reconstructs the outputs of its blocks better, iteration by
    iteration; without, the average. Norms of an iteration are those of the block it stands for; a shared
    norm is the average. Gates keep their own initialisation.

    The report says for each loop how far it is off: ``||W - W'|| / ||W||`` of the weights, with images
    ``||y - y'|| / ||y||`` of the maps.

    Args:
        transfer (GraftTransfer): The transfer to fill.
        images (Tensor, optional): A batch as the plain network gets it, shape (N, C, H, W).

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
    used = {block for blocks in places.values() for block in blocks}
    for name in transfer.backbone_keys():
        if not any(name.startswith(f'{loop}.') for loop in places):
            transfer.take(name)
    reader = None if images is None else _PlainReader(transfer, images)
    errors = {}
    for loop, blocks in places.items():
        errors[loop] = _fill_loop(transfer, loop, blocks, reader)
        for name in transfer.backbone_keys():
            if name.startswith(f'{loop}.gate.'):
                transfer.leave(transfer.prefix + name, 'the plain network has no gates')
    for name, key in transfer.plain.items():
        block = re.match(r'layer\d+\.\d+', name)
        if block and block[0] not in used and key not in transfer.used_sources():
            transfer.drop(key, 'a block that no iteration stands for')
    what = "||y - y'|| / ||y|| of the maps" if images is not None else "||W - W'|| / ||W||"
    shown = ', '.join(f'{loop} {error:.1%} ({how})' for loop, (error, how) in errors.items())
    transfer.report.errors.update({loop: error for loop, (error, _) in errors.items()})
    if errors:
        transfer.report.notes.append(f'relative error of each loop, {what}: {shown}')


def graft_loops(
    state_dict: Mapping[str, Any], model: nn.Module, images: Tensor | None = None, strict: bool = True
) -> tuple[dict[str, Tensor], Report]:
    """Turn a plain network's checkpoint into one for a network with loops, fitted to a batch of images.

    Without images it is :func:`graft`.

    Args:
        state_dict (Mapping): Checkpoint of a plain ResNet or MobileNetV2, see :func:`graft`.
        model (nn.Module): A backbone with loops, or a model with one; it is not changed.
        images (Tensor, optional): A batch, normalised as for the plain network, shape (N, C, H, W).
        strict (bool): Raise if a key is not explained. Defaults to True.

    Returns:
        tuple[dict[str, Tensor], Report]: A state dict that ``model.load_state_dict`` takes, and the account
        of every key.

    Raises:
        TransferError: If keys or shapes do not fit, with ``strict``; always if the blocks are of another kind
            or width.
    """
    transfer = GraftTransfer(unwrap(state_dict), model)
    graft_dr(transfer, images)
    transfer.copy_other_parts()
    return transfer.finish(strict)


def assign_blocks(backbone: nn.Module, plain: Mapping[str, str]) -> dict[str, list[str]]:
    """Which plain block each iteration of each loop stands for.

    Args:
        backbone (nn.Module): The network with loops.
        plain (Mapping[str, str]): Names of the plain network's parameters.

    Returns:
        dict[str, list[str]]: Loop -> a block for each of its iterations; blocks may repeat where the plain
        network has fewer.

    Example:
        >>> from mmrecur.models.backbones import DRResNet
        >>> plain = {f'layer4.{i}.conv1.weight': '' for i in range(3)}
        >>> model = DRResNet(35, out_indices=(3,))
        >>> assign_blocks(model, plain)['layer4.1']
        ['layer4.1', 'layer4.2']
    """
    loops: dict[str, list[tuple[str, int]]] = {}
    for name, block in backbone.named_modules():
        if isinstance(block, RecursiveBlock):
            loops.setdefault(name.split('.')[0], []).extend((name, k) for k in range(block.num_loops))
    places: dict[str, list[str]] = {}
    for stage, slots in loops.items():
        found = {int(m[1]) for name in plain if (m := re.match(rf'{stage}\.(\d+)\.', name))}
        blocks = sorted(found - {0})
        for slot, (loop, _) in enumerate(slots):
            if blocks:
                index = round(slot * (len(blocks) - 1) / max(1, len(slots) - 1))
                places.setdefault(loop, []).append(f'{stage}.{blocks[index]}')
    return places


def _convolutions(loop: RecursiveBlock) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in loop.block.named_modules() if isinstance(module, nn.Conv2d)}


def _check_blocks(transfer: GraftTransfer, places: Mapping[str, list[str]]) -> None:
    """Raise unless the plain blocks have the convolutions of the loops that they become."""
    for loop, blocks in places.items():
        for conv, module in _convolutions(transfer.backbone.get_submodule(loop)).items():
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


def _fill_loop(
    transfer: GraftTransfer, loop: str, blocks: list[str], reader: _PlainReader | None
) -> tuple[float, str]:
    """Fill a loop from its blocks; its error and the method that was taken."""
    module: RecursiveBlock = transfer.backbone.get_submodule(loop)
    convs = [*_convolutions(module)]
    weights = {
        conv: [transfer.source[transfer.plain[f'{block}.{conv}.weight']] for block in blocks]
        for conv in convs
    }
    choices = {'average': {conv: torch.stack(own).double().mean(0) for conv, own in weights.items()}}
    if reader is None:
        method, error = 'average', _distance(weights, choices['average'])
    else:
        choices['least squares'] = reader.fit(blocks, convs)
        errors = {name: reader.error(module, blocks, choice) for name, choice in choices.items()}
        method = min(errors, key=errors.get)
        error = errors[method]
    how = f'{method} of {len(set(blocks))} blocks'
    for conv in convs:
        sources = [transfer.plain[f'{block}.{conv}.weight'] for block in dict.fromkeys(blocks)]
        target = f'{transfer.prefix}{loop}.block.{conv}.weight'
        transfer.transform(target, sources, choices[method][conv].to(weights[conv][0]), how)
    _fill_norms(transfer, loop, blocks)
    return error, method


def _fill_norms(transfer: GraftTransfer, loop: str, blocks: list[str]) -> None:
    inside = f'{loop}.block.'
    for name in transfer.backbone_keys():
        if not name.startswith(inside) or f'{transfer.prefix}{name}' in transfer.report.transformed:
            continue
        target = transfer.prefix + name
        own = re.fullmatch(rf'(\w+)\.(?:(\d+)\.)?({_NORM_LEAVES})', name[len(inside) :])
        norm, index, leaf = own.groups()
        keys = [transfer.plain.get(f'{block}.{norm}.{leaf}') for block in blocks]
        if None in keys:
            transfer.take(name)
        elif index is not None:
            transfer.copy(target, keys[int(index)])
        else:
            stacked = torch.stack([transfer.source[key] for key in keys])
            shared = stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
            transfer.transform(target, list(dict.fromkeys(keys)), shared, 'the iterations share it: average')


def _distance(weights: Mapping[str, list[Tensor]], shared: Mapping[str, Tensor]) -> float:
    off = sum((w.double() - shared[conv]).square().sum() for conv, own in weights.items() for w in own)
    return float((off / sum(w.double().square().sum() for own in weights.values() for w in own)).sqrt())


class _PlainReader:
    """The plain network on a batch: what its convolutions read and its blocks return.

    In a stage without loops only the blocks run that the network with loops has too, so that what its loops
    are fitted to is what they will read.

    Args:
        transfer (GraftTransfer): Holds the plain network's weights and the network with loops, whose parts
            the plain one is put together from.
        images (Tensor): The batch.
    """

    def __init__(self, transfer: GraftTransfer, images: Tensor) -> None:
        self.transfer = transfer
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}  # block -> its input and output
        backbone = copy.deepcopy(transfer.backbone).eval()
        self._templates = {}
        with torch.no_grad():
            self._load(backbone, {n: transfer.source[k] for n, k in transfer.plain.items()})
            x = backbone._stem(images.to(next(backbone.parameters())))
            for stage in backbone.stages:
                x = self._run_stage(backbone, stage, x)

    @staticmethod
    def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
        own = module.state_dict()
        module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)

    def _run_stage(self, backbone: nn.Module, stage: str, x: Tensor) -> Tensor:
        modules = getattr(backbone, stage)
        template = next((m for m in modules if isinstance(m, RecursiveBlock)), None)
        indices = {int(m[1]) for n in self.transfer.plain if (m := re.match(rf'{stage}\.(\d+)\.', n))}
        for index in sorted(indices if template is not None else indices & {*range(len(modules))}):
            name = f'{stage}.{index}'
            if index == 0 or template is None:
                block = modules[index]
            else:
                block = self.plain_block(template, name)
            before = x
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
            if template is not None and index:
                self._templates[name] = block
                self.maps[name] = before, x
        return x

    def plain_block(self, template: RecursiveBlock, name: str) -> nn.Module:
        """A plain block with the weights of the source."""
        block = copy.deepcopy(template.block).eval()
        for child, norm in list(block.named_children()):
            if isinstance(norm, LoopNorm):
                setattr(block, child, norm[0])
        plain, prefix = self.transfer.plain, f'{name}.'
        self._load(
            block,
            {n[len(prefix) :]: self.transfer.source[k] for n, k in plain.items() if n.startswith(prefix)},
        )
        return block

    def fit(self, blocks: list[str], convs: list[str]) -> dict[str, Tensor]:
        """Weights of each convolution that are closest to those of all blocks on what these read."""
        fitted = {}
        for conv in convs:
            gram, cross = 0, 0
            for name in blocks:
                block = self._templates[name]
                module, read = block.get_submodule(conv), []
                handle = module.register_forward_pre_hook(lambda m, args, read=read: read.append(args[0]))
                with torch.no_grad():
                    block(self.maps[name][0])
                handle.remove()
                columns = _columns(module, read[0])
                own = columns @ columns.transpose(1, 2)
                weight = module.weight.double().view(module.groups, -1, columns.size(1))
                gram, cross = gram + own, cross + weight @ own
            # where the maps say nothing, the average
            average = cross_average = torch.stack(
                [self._templates[name].get_submodule(conv).weight.double() for name in blocks]
            ).mean(0)
            average = average.view(cross.shape)
            ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-12)
            eye = ridge * torch.eye(gram.size(1), dtype=gram.dtype, device=gram.device)
            solved = torch.linalg.solve(gram + eye, (cross + average @ eye).transpose(1, 2))
            fitted[conv] = solved.transpose(1, 2).reshape(cross_average.shape)
        return fitted

    def error(self, loop: RecursiveBlock, blocks: list[str], weights: Mapping[str, Tensor]) -> float:
        """Relative error of the maps, each iteration from the plain network's input on."""
        off, whole = 0.0, 0.0
        for name in blocks:
            block = copy.deepcopy(self._templates[name])
            self._load(block, {f'{conv}.weight': weight.float() for conv, weight in weights.items()})
            before, after = self.maps[name]
            with torch.no_grad():
                y = block(before)
            y = y[0] if isinstance(y, tuple) else y
            off += float((y - after).double().square().sum())
            whole += float(after.double().square().sum())
        return (off / whole) ** 0.5


def _columns(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution multiplies its weights with, shape (groups, entries of a filter, places)."""
    columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).double()
    n, entries, places = columns.shape
    grouped = columns.view(n, conv.groups, entries // conv.groups, places)
    return grouped.permute(1, 2, 0, 3).reshape(conv.groups, entries // conv.groups, n * places)
