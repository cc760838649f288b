"""Rewriting of backbones and whole models into their inference form."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from mmrecur.models.layers.common.modes import generators_kept

Model = TypeVar('Model', bound=nn.Module)


class Deployable(nn.Module):
    """Base class of modules that can be rewritten in place into their inference form.

    A subclass implements :meth:`_switch_to_deploy`.

    Attributes:
        deployed (bool): True once the module is in its inference form.
    """

    deployed: bool = False

    def train(self, mode: bool = True) -> Deployable:
        """Set training or evaluation mode. A module in its inference form stays in evaluation mode."""
        return super().train(mode and not self.deployed)

    @torch.no_grad()
    def switch_to_deploy(self, memory_format: torch.memory_format | None = None) -> None:
        """Rewrite the model in place into its fastest exact form for inference.

        Outputs agree with those in evaluation mode to a relative error of 1e-4 in float32. Parameters that
        only training needs are removed. Norms that depend on the input in evaluation mode, such as group
        norms, are kept. A second call does nothing.

        Args:
            memory_format (torch.memory_format, optional): Memory layout of the weights, which feature maps
                inherit. None uses channels last on a CPU, where convolutions are faster in that layout,
                and keeps the layout on other devices. File formats for contiguous tensors only, such as
                safetensors, need ``torch.contiguous_format``. Defaults to None.
        """
        if self.deployed:
            return
        self.eval()
        with generators_kept():
            self._switch_to_deploy()
        self.deployed = True
        if memory_format is None and next(self.parameters()).device.type == 'cpu':
            memory_format = torch.channels_last
        if memory_format is not None:
            self.to(memory_format=memory_format)

    def _switch_to_deploy(self) -> None:
        """Rewrite the submodules; called by :meth:`switch_to_deploy`."""
        raise NotImplementedError


def deploy(model: Model, memory_format: torch.memory_format | None = None) -> Model:
    """Switch every backbone of this package in a model to its inference form, in place.

    Args:
        model (nn.Module): A detector, a classifier, a backbone or a
            :class:`~mmrecur.models.shortest_path.ShortestPathNet`. It is set to evaluation mode.
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
