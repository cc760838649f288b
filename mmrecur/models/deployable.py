"""What modules with an inference form have in common."""

from __future__ import annotations

import torch
from torch import nn

from mmrecur.models.layers.common.modes import generators_kept


class Deployable(nn.Module):
    """Base of modules that can be rewritten in place into a form for inference.

    A subclass provides :meth:`_switch_to_deploy`.

    Attributes:
        deployed (bool): Whether the module is in its inference form.
    """

    deployed: bool = False

    def train(self, mode: bool = True) -> Deployable:
        """Set training mode; a module in its inference form stays in evaluation mode."""
        return super().train(mode and not self.deployed)

    @torch.no_grad()
    def switch_to_deploy(self, memory_format: torch.memory_format | None = None) -> None:
        """Rewrite the model in place into its fastest exact form for inference.

        Outputs agree with those in evaluation mode to 1e-4 relative in float32. Parameters that only
        training needs are gone; a second call does nothing. Norms that are no affine map in evaluation
        (group norms) stay.

        Args:
            memory_format (torch.memory_format, optional): Layout of the weights, and so of the maps
                computed from them. Defaults to None: channels last where the weights lie on a CPU,
                whose convolutions are faster that way, else unchanged. Files that hold tensors in rows
                only, such as safetensors, need ``torch.contiguous_format``.
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
        """The architecture's part of :meth:`switch_to_deploy`."""
        raise NotImplementedError
