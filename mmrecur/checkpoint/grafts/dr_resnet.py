"""Plain networks grafted into networks with loops, where each iteration stands for a plain block."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.grafts.mobilenet_names import mobilenet_names
from mmrecur.checkpoint.grafts.relaxation import fit_relaxation
from mmrecur.errors import TransferError
from mmrecur.models.backbones.loop_backbone import LoopBackbone
from mmrecur.models.layers.loop.block import LoopBlock
from mmrecur.models.layers.loop.relaxed import RelaxedConv2d

_NORM_LEAVES = r'weight|bias|running_mean|running_var|num_batches_tracked'


@register_graft(LoopBackbone)
def graft_loops(transfer: GraftTransfer) -> None:
    """Fill a network with loops from its plain counterpart.

    The blocks of a plain stage, except the first, are assigned in order to the iterations of the stage's
    loops. If the numbers differ, they are spread evenly. There are two ways to merge the convolutions of
    the blocks in a loop:

    - average: the mean of the weights;
    - least squares, which needs ``transfer.images``: the weights whose outputs are closest to those of all
      the blocks, given the feature maps that these read in the plain network.

    With images, each loop uses the method that reconstructs the outputs of its blocks better; without,
    the average. Residuals (``relaxation_rank``) are the closest of their rank to the differences between the
    blocks and the merged weights; at full rank each iteration has the convolutions of its block. The norms of
    an iteration are copied from its block; a norm shared by the iterations is the average. Gates keep their
    own initialisation.

    The report holds the relative error of each loop: ``||y - y'|| / ||y||`` of the feature maps with images,
    ``||W - W'|| / ||W||`` of the weights without.

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
    used = {block for blocks in places.values() for block in blocks}
    for name in transfer.backbone_keys():
        if not any(name.startswith(f'{loop}.') for loop in places):
            transfer.take(name)
    reader = None if transfer.images is None else _PlainReader(transfer, transfer.images)
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
    what = "||y - y'|| / ||y|| of the maps" if reader else "||W - W'|| / ||W||"
    shown = ', '.join(f'{loop} {error:.1%} ({how})' for loop, (error, how) in errors.items())
    transfer.report.errors.update({loop: error for loop, (error, _) in errors.items()})
    if errors:
        transfer.report.notes.append(f'relative error of each loop, {what}: {shown}')


def assign_blocks(backbone: nn.Module, plain: Mapping[str, str]) -> dict[str, list[str]]:
    """Assign a plain block to each iteration of each loop.

    Args:
        backbone (nn.Module): The network with loops.
        plain (Mapping[str, str]): Mapping whose keys are the names of the plain network's parameters.

    Returns:
        dict[str, list[str]]: Names of the blocks of each loop, one for each iteration. Blocks repeat if
        the plain network has fewer.

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
        blocks = sorted(found - {0})
        for slot, (loop, _) in enumerate(slots):
            if blocks:
                index = round(slot * (len(blocks) - 1) / max(1, len(slots) - 1))
                places.setdefault(loop, []).append(f'{stage}.{blocks[index]}')
    return places


def _convolutions(loop: LoopBlock) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in loop.block.named_modules() if isinstance(module, nn.Conv2d)}


def _check_blocks(transfer: GraftTransfer, places: Mapping[str, list[str]]) -> None:
    """Raise if the plain blocks lack a convolution of their loop or have it in another shape."""
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
    """Fill a loop from its blocks and return its error and the method used."""
    convs = [*_convolutions(transfer.backbone.get_submodule(loop))]
    weights = {
        conv: [transfer.source[transfer.plain[f'{block}.{conv}.weight']] for block in blocks]
        for conv in convs
    }
    choices = {'average': {conv: torch.stack(own).double().mean(0) for conv, own in weights.items()}}
    if reader is not None:
        choices['least squares'] = reader.fit(blocks, convs)
    relaxed = {name: _relax(transfer, loop, weights, choice) for name, choice in choices.items()}
    errors = {
        name: _distance(weights, own) if reader is None else reader.error(blocks, own)
        for name, (_, own) in relaxed.items()
    }
    method = min(errors, key=errors.get)
    error = errors[method]
    how = f'{method} of {len(set(blocks))} blocks'
    for conv in convs:
        sources = [transfer.plain[f'{block}.{conv}.weight'] for block in dict.fromkeys(blocks)]
        target = f'{transfer.prefix}{loop}.block.{conv}.weight'
        transfer.transform(target, sources, choices[method][conv].to(weights[conv][0]), how)
    for (conv, iteration, part), tensor in relaxed[method][0].items():
        source = transfer.plain[f'{blocks[iteration]}.{conv}.weight']
        target = f'{transfer.prefix}{loop}.block.{conv}.relaxations.{iteration}.{part}'
        transfer.transform(target, [source], tensor.to(weights[conv][0]), f'residual of the {method}')
    _fill_norms(transfer, loop, blocks)
    return error, method


def _relax(
    transfer: GraftTransfer, loop: str, weights: Mapping[str, list[Tensor]], shared: Mapping[str, Tensor]
) -> tuple[dict[tuple[str, int, str], Tensor], dict[str, list[Tensor]]]:
    """Fit the residuals of a loop, given the weights of its blocks and those that the iterations share.

    Returns:
        tuple[dict, dict]: Factors of the residuals by convolution, iteration and part; and the weights of
        the iterations by convolution.
    """
    factors, fitted = {}, {}
    for conv, module in _convolutions(transfer.backbone.get_submodule(loop)).items():
        fitted[conv] = []
        for iteration, weight in enumerate(weights[conv]):
            relaxation = module.relaxations[iteration] if isinstance(module, RelaxedConv2d) else None
            parts, own = fit_relaxation(weight.double(), shared[conv], relaxation)
            factors.update({(conv, iteration, part): tensor for part, tensor in parts.items()})
            fitted[conv].append(own)
    return factors, fitted


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


def _distance(weights: Mapping[str, list[Tensor]], fitted: Mapping[str, list[Tensor]]) -> float:
    pairs = [pair for conv, own in weights.items() for pair in zip(own, fitted[conv])]
    off = sum((weight.double() - fit).square().sum() for weight, fit in pairs)
    return float((off / sum(w.double().square().sum() for own in weights.values() for w in own)).sqrt())


class _PlainReader:
    """Runs the plain network on a batch and records the feature maps around its blocks.

    The plain network is assembled from copies of the looped network's modules. A stage without loops runs
    only the blocks that the looped network has too, so that the loops are fitted to the feature maps that
    they will read.

    Args:
        transfer (GraftTransfer): The transfer, with the plain network's weights and the looped network.
        images (Tensor): The batch, shape (N, C, H, W).
    """

    def __init__(self, transfer: GraftTransfer, images: Tensor) -> None:
        self.transfer = transfer
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}  # input and output of each block
        backbone = copy.deepcopy(transfer.backbone).eval()
        self._blocks = {}
        with torch.no_grad():
            self._load(backbone, {n: transfer.source[k] for n, k in transfer.plain.items()})
            x = backbone._run_stem(images.to(next(backbone.parameters())))
            for stage in backbone.stages:
                x = self._run_stage(backbone, stage, x)

    @staticmethod
    def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
        own = module.state_dict()
        module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)

    def _run_stage(self, backbone: nn.Module, stage: str, x: Tensor) -> Tensor:
        modules = getattr(backbone, stage)
        template = next((m for m in modules if isinstance(m, LoopBlock)), None)
        indices = {int(m[1]) for n in self.transfer.plain if (m := re.match(rf'{stage}\.(\d+)\.', n))}
        for index in sorted(indices if template is not None else indices & {*range(len(modules))}):
            name = f'{stage}.{index}'
            if index == 0 or template is None:
                block = modules[index]
            else:
                block = self.plain_block(template, name)
            before = x
            x = block(x)
            if template is not None and index:
                self._blocks[name] = block
                self.maps[name] = before, x
        return x

    def plain_block(self, template: LoopBlock, name: str) -> nn.Module:
        """Build a plain block with the weights of the source.

        Args:
            template (LoopBlock): A loop of the same stage.
            name (str): Name of the plain block.

        Returns:
            nn.Module: The block in evaluation mode.
        """
        block = template.plain_block(0).eval()
        plain, prefix = self.transfer.plain, f'{name}.'
        self._load(
            block,
            {n[len(prefix) :]: self.transfer.source[k] for n, k in plain.items() if n.startswith(prefix)},
        )
        return block

    def fit(self, blocks: list[str], convs: list[str]) -> dict[str, Tensor]:
        """Fit the weights of each convolution to its outputs in all blocks of a loop.

        Args:
            blocks (list[str]): Names of the plain blocks.
            convs (list[str]): Names of the convolutions in a block.

        Returns:
            dict[str, Tensor]: Weights of the convolutions in double precision.
        """
        return {conv: self._fit_convolution(blocks, conv) for conv in convs}

    def _fit_convolution(self, blocks: list[str], conv: str) -> Tensor:
        gram, cross = 0, 0
        for name in blocks:
            block = self._blocks[name]
            module, read = block.get_submodule(conv), []
            handle = module.register_forward_pre_hook(lambda m, args, read=read: read.append(args[0]))
            with torch.no_grad():
                block(self.maps[name][0])
            handle.remove()
            columns = _columns(module, read[0])
            own = columns @ columns.transpose(1, 2)
            weight = module.weight.double().view(module.groups, -1, columns.size(1))
            gram, cross = gram + own, cross + weight @ own
        weights = [self._blocks[name].get_submodule(conv).weight.double() for name in blocks]
        average = torch.stack(weights).mean(0)
        # the ridge draws weights that the feature maps do not determine to the average
        ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-12)
        eye = ridge * torch.eye(gram.size(1), dtype=gram.dtype, device=gram.device)
        right = cross + average.view(cross.shape) @ eye
        solved = torch.linalg.solve(gram + eye, right.transpose(1, 2))
        return solved.transpose(1, 2).reshape(average.shape)

    def error(self, blocks: list[str], weights: Mapping[str, list[Tensor]]) -> float:
        """Return the relative error of the outputs of a loop's blocks, given the plain blocks' inputs.

        Args:
            blocks (list[str]): Names of the plain blocks.
            weights (Mapping[str, list[Tensor]]): Weights of the convolutions in each block.

        Returns:
            float: ``||y - y'|| / ||y||`` over all blocks.
        """
        off, whole = 0.0, 0.0
        for index, name in enumerate(blocks):
            block = copy.deepcopy(self._blocks[name])
            self._load(block, {f'{conv}.weight': own[index].float() for conv, own in weights.items()})
            before, after = self.maps[name]
            with torch.no_grad():
                y = block(before)
            off += float((y - after).double().square().sum())
            whole += float(after.double().square().sum())
        return (off / whole) ** 0.5


def _columns(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Unfold the input of a convolution to shape (groups, entries of a filter, places)."""
    columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).double()
    n, entries, places = columns.shape
    grouped = columns.view(n, conv.groups, entries // conv.groups, places)
    return grouped.permute(1, 2, 0, 3).reshape(conv.groups, entries // conv.groups, n * places)
