"""The plain network of a graft, assembled from the modules of the network to fill."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.graft import GraftTransfer
from mmrecur.checkpoint.grafts.input_statistics import chunks
from mmrecur.models.layers.common.modes import generators_kept
from mmrecur.models.layers.filter_basis import BasisConv2d, FactorizedConv2d
from mmrecur.models.layers.filter_basis.basis import plain_conv
from mmrecur.models.layers.loop.block import LoopBlock
from mmrecur.models.layers.loop.norm import LoopNorm
from mmrecur.models.layers.template_bank.conv import TemplateConv2d
from mmrecur.models.layers.template_bank.stage import TemplateStage

#: Relative error up to which a graft counts as exact.
EXACT = 1e-3


@generators_kept()
@torch.no_grad()
def plain_network(transfer: GraftTransfer) -> nn.Module:
    """Assemble the plain network from a copy of the backbone that a graft fills.

    Shared convolutions become plain ones with the weights of the source, loops become the plain blocks of
    the source. Everything else has the values that the graft has chosen so far, so that the fits read what
    the layers around them will compute.

    Args:
        transfer (GraftTransfer): A graft that has filled everything that is not shared.

    Returns:
        nn.Module: The network in evaluation mode. Its convolutions have the common names of the plain
        network's.
    """
    network = copy.deepcopy(transfer.backbone).eval()
    network.load_state_dict(transfer.backbone_state())
    for name, module in list(network.named_modules()):
        if isinstance(module, (FactorizedConv2d, BasisConv2d, TemplateConv2d)):
            if f'{name}.weight' in transfer.plain:
                parent, _, own = name.rpartition('.')
                conv = _plain(module, _source(transfer, f'{name}.weight', network))
                setattr(network.get_submodule(parent), own, conv)
    for stage in network.children():
        if isinstance(stage, TemplateStage):
            stage.groups = {}  # no bank generates weights
    for name in dict.fromkeys(
        n.split('.')[0] for n, m in network.named_modules() if isinstance(m, LoopBlock)
    ):
        _unroll(transfer, network, name)
    return network.eval()


def _source(transfer: GraftTransfer, name: str, network: nn.Module) -> Tensor:
    return transfer.source[transfer.plain[name]].to(next(network.parameters()))


def _plain(module: nn.Module, weight: Tensor) -> nn.Conv2d:
    """Return a convolution like a shared one with a weight of its own."""
    if isinstance(module, TemplateConv2d):
        conv = module.materialise()
        conv.weight.copy_(weight)
        return conv
    return plain_conv(weight, None, module.stride, module.dilation, module.basis.groups)


def _unroll(transfer: GraftTransfer, network: nn.Module, stage_name: str) -> None:
    """Replace the loops of a stage by all plain blocks of the source, under their own names."""
    stage = getattr(network, stage_name)
    loop = next(block for block in stage.blocks if isinstance(block, LoopBlock))
    indices = {int(m[1]) for name in transfer.plain if (m := re.match(rf'{stage_name}\.(\d+)\.', name))}
    for index in sorted(indices - {0}):
        block = copy.deepcopy(loop.block)
        for child, norm in list(block.named_children()):
            if isinstance(norm, LoopNorm):
                setattr(block, child, norm[0])
        load_block(block, transfer, f'{stage_name}.{index}')
        stage.add_module(str(index), block)
    for index in range(stage.num_blocks):
        if index and index not in indices:
            delattr(stage, str(index))
    stage.num_blocks = 1 + max(indices)


def load_block(block: nn.Module, transfer: GraftTransfer, name: str) -> None:
    """Load the weights of a block of the source.

    Args:
        block (nn.Module): The block.
        transfer (GraftTransfer): The graft.
        name (str): Name of the block in the plain network.
    """
    own = block.state_dict()
    found = {
        leaf: transfer.source[transfer.plain[key]]
        for leaf in own
        if (key := f'{name}.{leaf}') in transfer.plain
    }
    block.load_state_dict(found, strict=False)


def refit_if_closer(
    transfer: GraftTransfer, network: nn.Module, refit: Callable[[], dict[str, float]]
) -> dict[str, float] | None:
    """Fit shared weights to the images, unless the last output is closer to the plain network's without.

    Each convolution is fitted to the plain network's maps. In a network far from the plain one, such as an
    untrained one, the errors of many layers can add up to more than those of the fit without images.

    Args:
        transfer (GraftTransfer): A graft that has filled the backbone without the images.
        network (nn.Module): See :func:`plain_network`.
        refit (Callable): Fits the shared weights and returns the relative errors.

    Returns:
        dict[str, float] | None: The relative errors; None if the graft is left as it was.
    """
    before, start = transfer.snapshot(), _error(transfer, network)
    errors = refit()
    if _error(transfer, network) <= max(start, EXACT):
        return errors
    transfer.restore(before)
    transfer.report.notes.append('fitted without the images: on them, the result is closer')
    return None


@torch.no_grad()
def _error(transfer: GraftTransfer, network: nn.Module) -> float:
    """Return the relative error of the graft's last output."""
    student, off, whole = copy.deepcopy(transfer.backbone).eval(), 0.0, 0.0
    student.load_state_dict(transfer.backbone_state())
    for chunk in chunks(transfer.images or [], next(network.parameters())):
        output = network(chunk)[-1].double()
        off += (student(chunk)[-1] - output).square().sum().item()
        whole += output.square().sum().item()
    return (off / max(whole, 1e-30)) ** 0.5
