"""Conversion of the authors' checkpoint layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.converters.net_rl2 import convert_net_rl2
from mmrecur.checkpoint.converters.rlanet_mobilenet import convert_rlanet_mobilenet
from mmrecur.checkpoint.converters.soft_sharing import convert_soft_sharing
from mmrecur.checkpoint.layouts import why_absent
from mmrecur.checkpoint.transfer import Report, Transfer
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.checks import check_choice
from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2


def convert(
    state_dict: Mapping[str, Any], source: str, model: nn.Module, strict: bool = True
) -> tuple[dict[str, Tensor], Report]:
    """Bring a checkpoint of the authors' code into the layout of a built model.

    Args:
        state_dict (Mapping): The checkpoint: tensors by name, or a dict that holds them under
            ``'state_dict'`` or ``'model'``. Prefixes ``module.`` are taken off.
        source (str): Whose layout it is: ``'rlanet'``, the code of *Recurrence along Depth*
            (classification networks with ``fc``, and the backbone of its MMDetection 1.x detectors,
            with or without the prefix ``backbone.``); ``'net_rl2'``, the code of *Deeply Shared Filter
            Bases* (classification networks); ``'soft_sharing'``, the code of *Learning
            Implicitly Recurrent CNNs*.
        model (nn.Module): A backbone of this package, or a model with one as ``backbone``, such as an
            mmpretrain classifier (whose ``head.fc`` is filled too) or an mmdet detector (whose other
            parts are left as they are: MMDetection 1.x numbered classes otherwise).
        strict (bool): Raise if a key is not explained. Defaults to True.

    Returns:
        tuple[dict[str, Tensor], Report]: A state dict that ``model.load_state_dict`` takes, and the
        account of every key. The model is not changed.

    Raises:
        ValueError: If ``source`` is not known or the model is in its inference form.
        TransferError: If keys or shapes do not fit, with ``strict``.

    Example:
        >>> from mmrecur.models.backbones import RLAResNet
        >>> model = RLAResNet(50, variant='v3', with_hidden=True)
        >>> state, report = convert(torch.load('authors.pth'), 'rlanet', model)  # doctest: +SKIP
        >>> model.load_state_dict(state)  # doctest: +SKIP
    """
    check_choice('source', source, CONVERTERS)
    transfer = Transfer(unwrap(state_dict), model)
    CONVERTERS[source](transfer)
    return transfer.finish(strict)


_RLANET_STAGE = re.compile(r'stages\.(\d+)\.(\d+)\.(.+)')
_RLANET_NORM = re.compile(r'stage_bns\.(\d+)\.(\d+)\.(.+)')
_RLANET_SHARED = re.compile(r'(conv_outs|recurrent_convs)\.(\d+)\.(?:(\w+)\.)?(weight|bias)')
#: What the blocks of a stage share, by the place of the stage's module and the layer in it.
_RLANET_SHARED_NAMES = {
    ('conv_outs', None): 'conv_out',
    ('recurrent_convs', None): 'recurrent_conv',
    ('recurrent_convs', 'conv'): 'unit.gates',  # ConvLSTM
    # ConvGRU
    ('recurrent_convs', 'gate_conv'): 'unit.gates',
    ('recurrent_convs', 'reset_gate_norm'): 'unit.gates_norm',
    ('recurrent_convs', 'update_gate_norm'): 'unit.gates_norm',
    ('recurrent_convs', 'output_conv'): 'unit.candidate',
    ('recurrent_convs', 'output_norm'): 'unit.candidate_norm',
}
#: Their two norms of the ConvGRU's gates, which are one norm of two groups here, in its order.
_RLANET_GATE_NORMS = ('.reset_gate_norm.', '.update_gate_norm.')
# in the blocks where nothing is shared
_RLANET_OWN = {'conv_out.': 'conv_out.', 'recurrent_conv.': 'recurrent_conv.', 'bn_rla.': 'norms.0.'}
_RLANET_ATTENTION = {'eca.': 'attention.', 'se.fc.0.': 'attention.fc1.', 'se.fc.2.': 'attention.fc2.'}


def _rlanet_name(key: str) -> str:
    """Name in this package of a key of the authors' RLA networks, without the backbone's prefix."""
    if match := _RLANET_STAGE.fullmatch(key):
        stage, block, rest = match.groups()
        for theirs, ours in _RLANET_OWN.items():
            if rest.startswith(theirs):
                return f'layer{int(stage) + 1}.rla.steps.{block}.{ours}{rest[len(theirs) :]}'
        for theirs, ours in _RLANET_ATTENTION.items():
            if rest.startswith(theirs):
                rest = ours + rest[len(theirs) :]
        return f'layer{int(stage) + 1}.{block}.{rest}'
    if match := _RLANET_NORM.fullmatch(key):
        stage, step, rest = match.groups()
        return f'layer{int(stage) + 1}.rla.norms.{step}.{rest}'
    if match := _RLANET_SHARED.fullmatch(key):
        kind, stage, layer, leaf = match.groups()
        if (kind, layer) in _RLANET_SHARED_NAMES:
            return f'layer{int(stage) + 1}.rla.{_RLANET_SHARED_NAMES[kind, layer]}.{leaf}'
    return re.sub(r'^bn2\.', 'hidden_norm.', key)


def _convert_rlanet(transfer: Transfer) -> None:
    if isinstance(transfer.backbone, RLAMobileNetV2):
        return convert_rlanet_mobilenet(transfer)
    source, target = transfer.source, transfer.target
    backbone, prefix = transfer.backbone, transfer.prefix
    from_detector = any(key.startswith('backbone.') for key in source)
    for key in source:
        if from_detector and not key.startswith('backbone.'):
            transfer.drop(key, 'not part of the backbone')
            continue
        name = key[len('backbone.') :] if from_detector else key
        ours = name.replace('fc.', 'head.fc.', 1) if name.startswith('fc.') else ''
        ours = ours or prefix + _rlanet_name(name)
        hidden = re.sub(r'conv1\.weight$', 'conv1_hidden.weight', ours)
        if hidden != ours and hidden in target:
            channels = target[ours].size(1)
            weight = source[key]
            transfer.transform(ours, [key], weight[:, :channels], f'inputs from x: [:, :{channels}]')
            transfer.transform(hidden, [key], weight[:, channels:], f'inputs from h: [:, {channels}:]')
        elif ours in target and any(norm in key for norm in _RLANET_GATE_NORMS):
            _join_gate_norms(transfer, ours, key)
        elif ours in target:
            transfer.copy(ours, key)
        elif why := why_absent(ours[len(prefix) :] if prefix else ours, backbone):
            transfer.drop(key, why)
    transfer.leave_counters_and_other_parts()
    recurrence = getattr(backbone, 'recurrence', None)
    variant = recurrence and recurrence.variant
    # the unshared network is the one that aggregates the residual in their code too
    if variant in ('v1', 'v2') and recurrence.share:
        transfer.report.notes.append(
            f"the model is variant {variant!r}; the authors' released ImageNet and COCO ResNets called "
            f'{variant} aggregate the block output and need variant={dict(v1="v3", v2="v4")[variant]!r} '
            'to give their accuracy'
        )


def _join_gate_norms(transfer: Transfer, target: str, key: str) -> None:
    """Fill the ConvGRU's norm of both gates, once both are there."""
    reset, update = _RLANET_GATE_NORMS
    keys = [key.replace(update, reset), key.replace(reset, update)]
    if key == keys[0] and keys[1] in transfer.source:
        joined = torch.cat([transfer.source[k] for k in keys])
        transfer.transform(target, keys, joined, 'reset gate, then update gate')


#: Layout -> rule. A family adds its authors' layout here.
CONVERTERS: dict[str, Callable[[Transfer], None]] = {
    'rlanet': _convert_rlanet,
    'net_rl2': convert_net_rl2,
    'soft_sharing': convert_soft_sharing,
}
