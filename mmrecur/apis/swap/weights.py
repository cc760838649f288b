"""What a swapped backbone starts from, and whether it then computes what the old one did."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrecur.apis.swap.target import ALTERS_WEIGHTS, Replaced
from mmrecur.errors import ToolError

#: Depths of ResNets; those of other networks are no depths of a plain one.
PLAIN_DEPTHS = (18, 34, 50, 101, 152)
#: Relative difference of features up to which rounding explains it.
EXACT = 1e-4


@dataclass
class Start:
    """What the backbone starts from.

    Attributes:
        init_cfg (dict, optional): For the backbone; None for random weights or those of a checkpoint of
            the whole model.
        kind (str): ``'random'``, ``'graft'`` of a plain network, or ``'model'``, a checkpoint of the whole.
        depth (int, optional): Depth of the plain network, if it is not the replaced one's.
        is_named (bool): Whether the user has named the plain network.
    """

    init_cfg: dict[str, Any] | None
    kind: str
    depth: int | None = None
    is_named: bool = False


def pretrained(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """The initialiser of a module's config that loads a checkpoint."""
    given = cfg.get('init_cfg')
    for item in [given] if isinstance(given, Mapping) else given or []:
        if 'checkpoint' in item:
            return dict(item)
    if isinstance(cfg.get('pretrained'), str):
        return dict(type='Pretrained', checkpoint=cfg['pretrained'])
    return None


def ways_out(args: Mapping[str, Any]) -> str:
    """What else to start from."""
    depth = args.get('depth')
    example = f', such as init="torchvision://resnet{depth}"' if depth in PLAIN_DEPTHS else ''
    return (
        'Allowed: init="none" (--init none) for random weights, or the checkpoint of a plain network that '
        f'fits{example}'
    )


def choose_start(init: str, replaced: Replaced, args: Mapping[str, Any]) -> Start:
    """Decide what the new backbone starts from.

    Args:
        init (str): ``'base'`` for what the replaced one starts from, ``'none'`` for random weights, or a
            plain network's checkpoint.
        replaced (Replaced): The replaced backbone.
        args (Mapping): Arguments of the new one.

    Returns:
        Start: The decision.

    Raises:
        ToolError: If the base's weights do not suit; the message says what else to start from.
    """
    if init == 'none':
        return Start(None, 'random')
    if init != 'base':
        return Start(dict(type='mmrecur.Graft', checkpoint=init), 'graft', is_named=True)
    found = pretrained(replaced.cfg)
    if found is None:
        return Start(None, 'random')
    checkpoint = found['checkpoint']
    if found['type'] == 'mmrecur.Graft':
        return Start(found, 'graft')
    if not replaced.is_plain:
        raise ToolError(
            f'the base starts from {checkpoint!r}, weights of a {replaced.kind}, which no backbone of this '
            f'package can take over. {ways_out(args)}'
        )
    for option, (usual, why) in ALTERS_WEIGHTS.items():
        value = replaced.options.get(option, replaced.unknown.get(option, usual))
        if value != usual and args.get(option, usual) != value and not _loads_plain_weights(value):
            raise ToolError(
                f'the base starts from {checkpoint!r} and its backbone has {option}={value!r}, which the new '
                f'one cannot have. {why}: in the new one they would compute something else. {ways_out(args)}'
            )
    start = Start({**found, 'type': 'mmrecur.Graft'}, 'graft')
    old_depth, depth = replaced.options.get('depth'), args.get('depth')
    if old_depth == depth or depth not in PLAIN_DEPTHS:
        return start
    name = re.fullmatch(rf'torchvision://resnet{old_depth}', checkpoint)
    if name is None:
        raise ToolError(
            f'the base starts from {checkpoint!r}, weights of depth {old_depth}; the new backbone has depth '
            f'{depth}. {ways_out(args)}'
        )
    start.init_cfg['checkpoint'] = f'torchvision://resnet{depth}'
    start.depth = depth
    return start


def _loads_plain_weights(value: Any) -> bool:
    """Whether an option is a kind of convolution that computes at first what a plain one does (DetectoRS)."""
    return isinstance(value, Mapping) and value.get('type') == 'ConvAWS'


@torch.no_grad()
def randomize_norms(backbone: nn.Module, image: Tensor) -> None:
    """Give random weights the norms of trained ones: scales of their own and statistics that fit.

    Args:
        backbone (nn.Module): Changed in place; what is frozen too.
        image (Tensor): Images, shape (N, C, H, W).
    """
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    backbone.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:
            norm.weight.uniform_(0.5, 1.0, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
        norm.momentum = 1.0
        nn.Module.train(norm, True)
    backbone(image.expand(2, *image.shape[1:]) if len(image) < 2 else image)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    backbone.eval()


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest difference of two tuples of maps, relative to the largest value of the first's map.

    Args:
        first (Sequence[Tensor]): Maps.
        second (Sequence[Tensor]): As many of the same sizes; further channels of theirs are left out.

    Returns:
        float: The difference.
    """
    pairs = ((a, b[:, : a.size(1)]) for a, b in zip(first, second, strict=True))
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)
