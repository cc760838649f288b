"""Build backbones and compare their feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrecur.apis.specs import build_model
from mmrecur.errors import ToolError

#: Image sizes on which backbones are compared. Height and width differ so that swapped axes are noticed.
#: Window-based transformers need the larger sizes, since a window must fit into their smallest map.
_SIZES = ((96, 128), (256, 288), (512, 544), (768, 800))


def build(cfg: dict[str, Any], scope: str | None, name: str) -> nn.Module:
    """Build a module with random weights.

    Args:
        cfg (dict): Config of the module.
        scope (str, optional): Registry scope of types without a prefix.
        name (str): Name of the module in error messages.

    Returns:
        nn.Module: The module.

    Raises:
        ToolError: If the module cannot be built.
    """
    try:
        return build_model(cfg, scope)
    except ToolError as error:
        raise ToolError(f'{name}: {error}') from error
    except Exception as error:  # constructors of the libraries raise anything, AssertionError included
        raise ToolError(f'{name} cannot be built: {type(error).__name__}: {error}') from error


@torch.no_grad()
def feature_maps(backbone: nn.Module, image: Tensor, name: str) -> tuple[Tensor, ...]:
    """Run a backbone in evaluation mode.

    Args:
        backbone (nn.Module): The backbone.
        image (Tensor): Images, shape (N, C, H, W).
        name (str): Name of the backbone in error messages.

    Returns:
        tuple[Tensor]: Feature maps, shapes (N, C_i, H_i, W_i).

    Raises:
        ToolError: If the backbone fails or returns anything but feature maps.
    """
    backbone.eval()
    try:
        maps = backbone(image)
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ToolError(f'{name} does not run on an image alone ({reason})') from error
    maps = (maps,) if isinstance(maps, Tensor) else maps
    if not isinstance(maps, (tuple, list)) or not all(isinstance(m, Tensor) and m.dim() == 4 for m in maps):
        raise ToolError(
            f'{name} returns no feature maps of shape (N, C, H, W), so a CNN cannot take its place'
        )
    return tuple(maps)


def probe(backbone: nn.Module, channels: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the replaced backbone on the smallest image that it accepts.

    Args:
        backbone (nn.Module): The replaced backbone.
        channels (int): Channels of the image.

    Returns:
        tuple[Tensor, tuple[Tensor, ...]]: The image, shape (1, C, H, W), and the feature maps.

    Raises:
        ToolError: If the backbone accepts no size; the message is that for the smallest size.
    """
    errors = []
    for size in _SIZES:
        image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
        try:
            return image, feature_maps(backbone, image, "the base's backbone")
        except ToolError as error:
            errors.append(error)
    raise errors[0]


@torch.no_grad()
def randomize_norms(backbone: nn.Module, image: Tensor) -> None:
    """Give batch norms random scales and shifts, and statistics that match the random weights.

    With the default norms (scale 1, shift 0, mean 0, variance 1) a wrong graft could go unnoticed.

    Args:
        backbone (nn.Module): Changed in place, frozen norms included. It is left in evaluation mode.
        image (Tensor): Images to compute the statistics on, shape (N, C, H, W).
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
    """Compute the largest difference between two tuples of maps, relative to the first's largest value.

    Args:
        first (Sequence[Tensor]): Maps.
        second (Sequence[Tensor]): As many maps of the same sizes. Additional channels are ignored.

    Returns:
        float: The maximum over all pairs of maps.
    """
    pairs = ((a, b[:, : a.size(1)]) for a, b in zip(first, second, strict=True))
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)
