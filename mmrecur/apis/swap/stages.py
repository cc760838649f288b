"""Which stages of the new backbone give the maps that the replaced one gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.apis.swap.target import outputs
from mmrecur.errors import ToolError

#: Sizes of images on which backbones are compared: multiples of 32, sides that differ. Windows of a
#: transformer want their own size of the smallest map.
_PROBES = ((96, 128), (256, 288), (512, 544), (768, 800))


def probe(backbone: nn.Module, channels: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the replaced backbone on the smallest image that it takes.

    Args:
        backbone (nn.Module): The backbone.
        channels (int): Channels of the image.

    Returns:
        tuple[Tensor, tuple[Tensor, ...]]: The image, shape (1, C, H, W), and the maps.

    Raises:
        ToolError: If it takes none; the message has the reason for the smallest.
    """
    errors = []
    for size in _PROBES:
        image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
        try:
            return image, outputs(backbone, image, "the base's backbone")
        except ToolError as error:
            errors.append(error)
    raise errors[0]


def matching_indices(
    build: Callable[[tuple[int, ...]], nn.Module], maps: Sequence[Tensor], image: Tensor
) -> tuple[tuple[int, ...], int]:
    """Stages whose maps are as large as the replaced ones; of equal ones the same width, else the last.

    Args:
        build (Callable): Builds the new backbone for its ``out_indices``.
        maps (Sequence[Tensor]): Of the replaced backbone.
        image (Tensor): The image that they are of.

    Returns:
        tuple[tuple[int, ...], int]: The ``out_indices``, and how many stages the backbone can have.

    Raises:
        ToolError: If some map has no stage of its own.
    """
    new = None
    for number in range(12, 0, -1):
        try:
            new = build(tuple(range(number)))
            break
        except ToolError as error:
            if 'out_indices' not in str(error):
                raise
    stages = outputs(new, image, 'the new backbone')
    found = []
    for wanted in maps:
        fits = [i for i, stage in enumerate(stages) if stage.shape[2:] == wanted.shape[2:]]
        same = [i for i in fits if stages[i].size(1) == wanted.size(1)]
        if not fits:
            break
        found.append((same or fits)[-1])
    if len(found) < len(maps) or sorted(set(found)) != found:
        height = image.size(2)
        raise ToolError(
            f"the outputs of the base's backbone have strides {[height // m.size(2) for m in maps]}; "
            f'{type(new).__name__} has stages of {[height // s.size(2) for s in stages]}, each once at most'
        )
    return tuple(found), len(stages)


def loss_notes(old: nn.Module, new: nn.Module, old_channels: Sequence[int], stages: int | None) -> list[str]:
    """Say what of a network a swap does without.

    Args:
        old (nn.Module): The replaced backbone.
        new (nn.Module): The new one.
        old_channels (Sequence[int]): Channels of the replaced one's maps.
        stages (int, optional): How many stages the new one can have; None if its stages are those of the
            replaced one.

    Returns:
        list[str]: Remarks, none if nothing is lost.
    """
    notes = []
    before, now = (sum(p.numel() for p in module.parameters()) for module in (old, new))
    size = f'{now:,} parameters instead of {before:,} ({100 * (now / before - 1):+.0f} %)'
    kept = new.out_indices[-1] + 1
    if stages is not None and kept < stages and now < before:
        notes.append(
            f'{type(new).__name__} ends with stage {kept} of {stages}, whose map is as large as the last of '
            f'the base, and does without the rest: {size}'
        )
    narrower = any(n < o for o, n in zip(old_channels, new.out_channels))
    if narrower:
        end = '' if notes else f': {size}'
        notes.append(f'maps have {[*new.out_channels]} channels instead of {[*old_channels]}{end}')
    return notes
