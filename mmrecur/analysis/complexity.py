"""Parameters and multiply-adds of models.

A multiply-add is one multiplication together with the addition of its product, counted as one:
what papers on vision models call a FLOP. MMEngine's counter counts them in convolutions, matrix
products, normalisations and poolings of one forward pass.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn

from mmrecur.models.layers.common.modes import evaluation_mode


@dataclass(frozen=True)
class Complexity:
    """Size and work of a module.

    Args:
        parameters (int): All parameters; one that modules share counts once.
        trainable (int): Those that require a gradient.
        multiply_adds (int): Multiply-adds of a forward pass of one image.
    """

    parameters: int
    trainable: int
    multiply_adds: int


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count parameters.

    Args:
        model (nn.Module): Any module.

    Returns:
        tuple[int, int]: All parameters and those that require a gradient.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        (8, 8)
    """
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trainable


class _TensorMode(nn.Module):
    """A model whose forward pass needs more than an image, as a function of the image alone."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs, **self.arguments)


def count_work(model: nn.Module, inputs: Tensor, arguments: dict[str, Any] | None = None) -> Counter[str]:
    """Count the multiply-adds of every module of a model.

    Args:
        model (nn.Module): A backbone, or anything else that an image goes through; put into
            evaluation mode for the measurement.
        inputs (Tensor): Image, shape (1, C, H, W), as the model gets it.
        arguments (dict, optional): More arguments of ``forward``. Defaults to None.

    Returns:
        Counter[str]: Multiply-adds by the module's name, of the whole under ``''``.

    Raises:
        ValueError: If ``inputs`` is not a batch of one image.
    """
    if inputs.dim() != 4 or len(inputs) != 1:
        raise ValueError(f'inputs has shape {tuple(inputs.shape)}; allowed: (1, C, H, W)')
    analyzer = FlopAnalyzer(_TensorMode(model, arguments or {}), (inputs,))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    logger = logging.getLogger('mmengine.analysis')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with evaluation_mode(model), torch.no_grad():
            work = analyzer.by_module()
    finally:
        logger.setLevel(level)
    return Counter({name.removeprefix('model').removeprefix('.'): int(n) for name, n in work.items() if name})


def measure(
    model: nn.Module, inputs: Tensor, arguments: dict[str, Any] | None = None
) -> dict[str, Complexity]:
    """Measure a model and its parts.

    Args:
        model (nn.Module): A backbone, or anything else that an image goes through; put into
            evaluation mode for the measurement.
        inputs (Tensor): Image, shape (1, C, H, W), as the model gets it.
        arguments (dict, optional): More arguments of ``forward``. Defaults to None.

    Returns:
        dict[str, Complexity]: The whole under ``''`` and the direct children that have parameters
        or do work, by name.

    Raises:
        ValueError: If ``inputs`` is not a batch of one image.
    """
    work = count_work(model, inputs, arguments)
    whole = Complexity(*count_parameters(model), work[''])
    parts = {name: Complexity(*count_parameters(child), work[name]) for name, child in model.named_children()}
    return {'': whole, **{name: p for name, p in parts.items() if p.parameters or p.multiply_adds}}


def image_inputs(model: nn.Module, shape: Sequence[int], channels: int = 3) -> tuple[Tensor, dict]:
    """Make what ``measure`` needs for a model and a size of image.

    Args:
        model (nn.Module): A backbone, or a classifier or detector with a data preprocessor, which
            then pads as it does in use.
        shape (Sequence[int]): Height and width of the image.
        channels (int): Channels of the image. Defaults to 3.

    Returns:
        tuple[Tensor, dict]: The image and the other arguments of ``forward``.
    """
    height, width = shape
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, height, width, generator=generator)
    if not hasattr(model, 'data_preprocessor'):
        return image, {}
    if not is_detector(model):
        return image, {'mode': 'tensor'}
    from mmdet.structures import DetDataSample

    meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=meta)
    pixels = (image[0] * 64 + 128).clamp(0, 255).to(torch.uint8)
    batch = model.data_preprocessor(dict(inputs=[pixels], data_samples=[sample]), False)
    return batch['inputs'], {'data_samples': batch['data_samples'], 'mode': 'tensor'}


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of mmdet's detectors."""
    try:
        from mmdet.models import BaseDetector
    except ImportError:
        return False
    return isinstance(model, BaseDetector)
