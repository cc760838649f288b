"""Parameters and multiply-adds of models.

A multiply-add is one multiplication and one addition, counted together as one. Papers on vision models
often call it a FLOP. MMEngine's counter counts them in convolutions, matrix
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
    """Number of parameters and multiply-adds of a module.

    Args:
        parameters (int): All parameters. A parameter that modules share counts once.
        trainable (int): Parameters that require a gradient.
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
        tuple[int, int]: Number of all parameters and of those that require a gradient.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        (8, 8)
    """
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trainable


class _TensorMode(nn.Module):
    """Wrapper that binds all arguments of a forward pass except the image."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs, **self.arguments)


def count_work(model: nn.Module, inputs: Tensor, arguments: dict[str, Any] | None = None) -> Counter[str]:
    """Count the multiply-adds of every module of a model.

    Args:
        model (nn.Module): A backbone or another model that takes an image. It is measured in evaluation
            mode.
        inputs (Tensor): Preprocessed image, shape (1, C, H, W).
        arguments (dict, optional): More arguments of ``forward``. Defaults to None.

    Returns:
        Counter[str]: Multiply-adds by module name; those of the whole model under ``''``.

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
    """Measure a model and its direct children.

    Args:
        model (nn.Module): A backbone or another model that takes an image. It is measured in evaluation
            mode.
        inputs (Tensor): Preprocessed image, shape (1, C, H, W).
        arguments (dict, optional): More arguments of ``forward``. Defaults to None.

    Returns:
        dict[str, Complexity]: Results by name, with the whole model under ``''``. Children without
        parameters and multiply-adds are left out.

    Raises:
        ValueError: If ``inputs`` is not a batch of one image.
    """
    work = count_work(model, inputs, arguments)
    whole = Complexity(*count_parameters(model), work[''])
    parts = {name: Complexity(*count_parameters(child), work[name]) for name, child in model.named_children()}
    return {'': whole, **{name: p for name, p in parts.items() if p.parameters or p.multiply_adds}}


def image_inputs(model: nn.Module, shape: Sequence[int], channels: int = 3) -> tuple[Tensor, dict]:
    """Make the inputs that :func:`measure` needs for a model.

    Args:
        model (nn.Module): A backbone, a classifier or a detector. The data preprocessor of a detector
            pads the image as usual.
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
    """Return whether a model is a detector of mmdet."""
    try:
        from mmdet.models import BaseDetector
    except ImportError:
        return False
    return isinstance(model, BaseDetector)
