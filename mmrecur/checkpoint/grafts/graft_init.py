"""Initialiser that grafts a plain network, for ``init_cfg`` in a config."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.model import update_init_info
from torch import nn

from mmrecur.checkpoint.grafts.graft import graft
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.errors import TransferError
from mmrecur.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module(name='Graft')
class GraftInit:
    """Initialise a backbone with a plain network's weights, see :func:`graft`, and log the report.

    Args:
        checkpoint (str): File, URL or name known to MMEngine, such as ``torchvision://resnet50``.
        prefix (str, optional): Read only the keys that start with it and remove it from them. Defaults to
            None.
        strict (bool): Raise if a key is not explained. Defaults to True.
        ema (bool): Prefer the moving average of the weights if the checkpoint holds both. Defaults to
            True.
        map_location (str): Device to load to. Defaults to 'cpu'.

    Raises:
        TypeError: If ``checkpoint`` is not a string.

    Example:
        ``init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet50')``
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        strict: bool = True,
        ema: bool = True,
        map_location: str = 'cpu',
    ) -> None:
        if not isinstance(checkpoint, str):
            raise TypeError(f'checkpoint={checkpoint!r}, allowed: a file, a URL or a name as a string')
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.strict = strict
        self.ema = ema
        self.map_location = map_location

    def __call__(self, module: nn.Module) -> None:
        """Graft the checkpoint into a module.

        Args:
            module (nn.Module): A backbone or a model with one.

        Raises:
            CheckpointError: If the checkpoint is damaged or contains code.
            TransferError: If the checkpoint does not fit; the message names it.
        """
        loaded = load_checkpoint(self.checkpoint, self.map_location)
        try:
            state, report = graft(loaded, module, strict=self.strict, prefix=self.prefix, ema=self.ema)
        except TransferError as error:
            raise TransferError(f'checkpoint {self.checkpoint!r}: {error}') from error
        module.load_state_dict(state)
        print_log(f'Grafted {self.checkpoint}\n{report}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'{type(self).__name__}: {self.checkpoint}')
