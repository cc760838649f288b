"""Inference form of whole models."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from mmrecur.models.deployable import Deployable

Model = TypeVar('Model', bound=nn.Module)


def deploy(model: Model, memory_format: torch.memory_format | None = None) -> Model:
    """Bring every backbone of this package in a model into its inference form, in place.

    Args:
        model (nn.Module): A detector, a classifier, a backbone or a :class:`ShortestPathNet`. It is put into
            evaluation mode.
        memory_format (torch.memory_format, optional): See :meth:`Deployable.switch_to_deploy`.
            Defaults to None.

    Returns:
        nn.Module: The same model.

    Raises:
        ValueError: If the model has no backbone of this package.

    Example:
        >>> from mmrecur.apis import deploy
        >>> from mmrecur.models.backbones import RLAResNet
        >>> model = deploy(RLAResNet(50))
        >>> model.deployed
        True
    """
    backbones = [module for module in model.modules() if isinstance(module, Deployable)]
    if not backbones:
        raise ValueError(
            f'model of type {type(model).__name__} has no backbone of mmrecur, allowed: a model with one'
        )
    model.eval()
    for backbone in backbones:
        backbone.switch_to_deploy(memory_format)
    return model
