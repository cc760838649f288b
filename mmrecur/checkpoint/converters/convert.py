"""Conversion of checkpoints written by the authors' code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mmrecur.checkpoint.converters.net_rl2 import convert_net_rl2
from mmrecur.checkpoint.converters.rlanet import convert_rlanet
from mmrecur.checkpoint.converters.soft_sharing import convert_soft_sharing
from mmrecur.checkpoint.transfer import Report, Transfer
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.checks import check_choice

#: Rule by the name of the source. A rule fills a :class:`Transfer`.
CONVERTERS: dict[str, Callable[[Transfer], None]] = {
    'rlanet': convert_rlanet,
    'net_rl2': convert_net_rl2,
    'soft_sharing': convert_soft_sharing,
}


def convert(
    state_dict: Mapping[str, Any], source: str, model: nn.Module, strict: bool = True
) -> tuple[dict[str, Tensor], Report]:
    """Convert a checkpoint of the authors' code into a state dict for a model of this package.

    Args:
        state_dict (Mapping): The checkpoint: tensors by name, or a dict that holds them under
            ``'state_dict'`` or ``'model'``. Prefixes ``module.`` are removed.
        source (str): Name of the code that wrote the checkpoint. ``'rlanet'`` is that of *Recurrence along
            Depth*: classification networks with ``fc``, and the backbone of its MMDetection 1.x detectors,
            with or without the prefix ``backbone.``. ``'net_rl2'`` is that of *Deeply Shared Filter Bases*
            (classification networks). ``'soft_sharing'`` is that of *Learning Implicitly Recurrent CNNs*.
        model (nn.Module): A backbone of this package, or a model with one as ``backbone``. The ``head.fc``
            of an mmpretrain classifier is filled too. Other parts of an mmdet detector keep their values,
            because MMDetection 1.x numbered classes differently. The model is not changed.
        strict (bool): Raise if a key is not explained. Defaults to True.

    Returns:
        tuple[dict[str, Tensor], Report]: A state dict for ``model.load_state_dict`` and the report on every
        key.

    Raises:
        ValueError: If ``source`` is unknown, the backbone is of another family, or the model is in its
            inference form.
        TransferError: If keys or shapes do not fit, with ``strict``.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RLAResNet
        >>> model = RLAResNet(50, variant='v3', with_hidden=True)
        >>> state, report = convert(torch.load('authors.pth'), 'rlanet', model)  # doctest: +SKIP
        >>> model.load_state_dict(state)  # doctest: +SKIP
    """
    check_choice('source', source, CONVERTERS)
    transfer = Transfer(unwrap(state_dict), model)
    CONVERTERS[source](transfer)
    return transfer.finish(strict)
