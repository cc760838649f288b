"""Checkpoints of the RLA authors' ResNets."""

from __future__ import annotations

import re

import torch

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.converters.rlanet_mobilenet import convert_rlanet_mobilenet
from mmrecur.checkpoint.transfer import Transfer
from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2

_STAGE = re.compile(r'stages\.(\d+)\.(\d+)\.(.+)')
_NORM = re.compile(r'stage_bns\.(\d+)\.(\d+)\.(.+)')
_SHARED = re.compile(r'(conv_outs|recurrent_convs)\.(\d+)\.(?:(\w+)\.)?(weight|bias)')
#: Our names of the modules that the blocks of a stage share, by the authors' list and layer.
_SHARED_NAMES = {
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
#: The authors' two norms of the ConvGRU's gates, in the order in which our single norm joins them.
_GATE_NORMS = ('.reset_gate_norm.', '.update_gate_norm.')
#: Our names of the modules that each block owns in the unshared network, by the authors' names.
_OWN = {'conv_out.': 'conv_out.', 'recurrent_conv.': 'recurrent_conv.', 'bn_rla.': 'norms.0.'}
_ATTENTION = {'eca.': 'attention.', 'se.fc.0.': 'attention.fc1.', 'se.fc.2.': 'attention.fc2.'}


def _our_name(key: str) -> str:
    """Translate a key of the authors' checkpoints into our name, both without the backbone's prefix."""
    if match := _STAGE.fullmatch(key):
        stage, block, rest = match.groups()
        for theirs, ours in _OWN.items():
            if rest.startswith(theirs):
                return f'layer{int(stage) + 1}.rla.steps.{block}.{ours}{rest[len(theirs) :]}'
        for theirs, ours in _ATTENTION.items():
            if rest.startswith(theirs):
                rest = ours + rest[len(theirs) :]
        return f'layer{int(stage) + 1}.{block}.{rest}'
    if match := _NORM.fullmatch(key):
        stage, step, rest = match.groups()
        return f'layer{int(stage) + 1}.rla.norms.{step}.{rest}'
    if match := _SHARED.fullmatch(key):
        kind, stage, layer, leaf = match.groups()
        if (kind, layer) in _SHARED_NAMES:
            return f'layer{int(stage) + 1}.rla.{_SHARED_NAMES[kind, layer]}.{leaf}'
    return re.sub(r'^bn2\.', 'hidden_norm.', key)


def convert_rlanet(transfer: Transfer) -> None:
    """Fill an RLA backbone from the authors' classifier or from a detector with their backbone.

    Args:
        transfer (Transfer): The transfer to fill.
    """
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
        ours = ours or prefix + _our_name(name)
        hidden = re.sub(r'conv1\.weight$', 'conv1_hidden.weight', ours)
        if hidden != ours and hidden in target:
            channels = target[ours].size(1)
            weight = source[key]
            transfer.transform(ours, [key], weight[:, :channels], f'inputs from x: [:, :{channels}]')
            transfer.transform(hidden, [key], weight[:, channels:], f'inputs from h: [:, {channels}:]')
        elif ours in target and any(norm in key for norm in _GATE_NORMS):
            _join_gate_norms(transfer, ours, key)
        elif ours in target:
            transfer.copy(ours, key)
        elif why := why_absent(ours[len(prefix) :] if prefix else ours, backbone):
            transfer.drop(key, why)
    transfer.leave_counters_and_other_parts()
    _note_variant(transfer)


def _note_variant(transfer: Transfer) -> None:
    """Warn that the authors' released networks need a different variant than their names suggest."""
    recurrence = getattr(transfer.backbone, 'recurrence', None)
    variant = recurrence and recurrence.variant
    # the authors' unshared network aggregates the residual, like ours
    if variant in ('v1', 'v2') and recurrence.share:
        transfer.report.notes.append(
            f"the model is variant {variant!r}; the authors' released ImageNet and COCO ResNets called "
            f'{variant} aggregate the block output and need variant={dict(v1="v3", v2="v4")[variant]!r} '
            'to give their accuracy'
        )


def _join_gate_norms(transfer: Transfer, target: str, key: str) -> None:
    """Fill the norm of the ConvGRU's gates when the first of its two sources is met."""
    reset, update = _GATE_NORMS
    keys = [key.replace(update, reset), key.replace(reset, update)]
    if key == keys[0] and keys[1] in transfer.source:
        joined = torch.cat([transfer.source[k] for k in keys])
        transfer.transform(target, keys, joined, 'reset gate, then update gate')
