"""Hints about options of a backbone that a plain checkpoint asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from mmrecur.checkpoint.grafts.graft import GraftTransfer


def suggest_options(transfer: GraftTransfer) -> str:
    """Suggest options of the backbone that would fit a checkpoint.

    Args:
        transfer (GraftTransfer): The transfer that failed.

    Returns:
        str: A sentence to append to the error message; empty if no option is known to help.
    """
    options = [*_attention(transfer), *_stem(transfer)]
    return f'. The checkpoint fits a backbone with {", ".join(options)}' if options else ''


def _attention(transfer: GraftTransfer) -> list[str]:
    """Return the attention option of the checkpoint's network if the model has another one."""
    theirs = _attention_shapes({name: transfer.source[key] for name, key in transfer.plain.items()})
    ours = {name: transfer.target[transfer.prefix + name] for name in transfer.backbone_keys()}
    ours = _attention_shapes(ours)
    common = theirs.keys() & ours.keys()
    if not theirs or not hasattr(transfer.backbone, 'attention'):
        return []
    if ours and all(theirs[block] == ours[block] for block in common):
        return []
    parts = next(iter(theirs.values()))
    args: dict[str, Any] = {'type': 'eca'}
    if 'fc1.weight' in parts:
        args['type'] = 'cbam' if 'spatial.weight' in parts else 'se'
        reductions = {of[1] // of[0] for block in theirs.values() if (of := block.get('fc1.weight'))}
        if len(reductions) > 1:  # mmpretrain rounds the width in narrow networks
            return []
        if reductions != {16}:
            args['reduction'] = reductions.pop()
        if 'fc1.bias' in parts:
            args['bias'] = True
        if 'spatial_norm.weight' in parts:
            args['spatial_norm'] = True
    elif 'conv.weight' in parts:
        sizes = {block['conv.weight'][-1] for block in theirs.values()}
        if len(sizes) == 1:
            args['kernel_size'] = sizes.pop()
    else:
        return []
    shown = ', '.join(f'{key}={value!r}' for key, value in args.items())
    return [f'attention=dict({shown})' if len(args) > 1 else f'attention={args["type"]!r}']


def _attention_shapes(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of attention parameters by block and name, with 1x1 convolutions as matrices."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r'(layer\d+\.\d+)\.attention\.(.+)', name):
            if not match[2].endswith('num_batches_tracked'):
                shape = tuple(tensor.shape)
                shape = shape[:2] if match[2].startswith('fc') and len(shape) == 4 else shape
                found.setdefault(match[1], {})[match[2]] = shape
    return found


def _stem(transfer: GraftTransfer) -> list[str]:
    """Return the stem option if only one of checkpoint and model has the stem of a ResNet-D."""
    if not hasattr(transfer.backbone, 'deep_stem'):
        return []
    deep = 'stem.0.weight' in transfer.plain
    if not deep and 'conv1.weight' not in transfer.plain or deep == transfer.backbone.deep_stem:
        return []
    return [f'deep_stem={deep}']


def style_note(checkpoint: Mapping[str, Any], transfer: GraftTransfer) -> list[str]:
    """Warn if the strides of bottlenecks are on other layers in the model than in the checkpoint.

    Names and shapes are the same for both styles, so loading succeeds but the features differ.

    Args:
        checkpoint (Mapping): Content of the checkpoint file.
        transfer (GraftTransfer): Transfer of the checkpoint to the model.

    Returns:
        list[str]: One note, or none.
    """
    plain = transfer.plain
    if not {'layer2.0.conv3.weight', 'layer2.0.downsample.0.weight'} <= plain.keys():
        return []
    recorded = _recorded_style(checkpoint)
    theirs = recorded or ('caffe' if _is_converted_from_caffe(transfer) else None)
    ours = getattr(transfer.backbone, 'style', 'pytorch')
    if theirs is None or theirs == ours:
        return []
    how = 'records' if recorded else 'looks converted from Caffe (norms without statistics), which means'
    place = dict(caffe='the first 1x1 convolution', pytorch='the 3x3 convolution')[theirs]
    has_option = hasattr(transfer.backbone, 'style')
    remedy = f'set style={theirs!r} to keep the function' if has_option else 'it has no other style'
    return [
        f'the checkpoint {how} style={theirs!r}, with the stride on {place} of a block; the model has '
        f'style={ours!r}, which computes other features: {remedy}'
    ]


def _recorded_style(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the style in the config that MMEngine and MMCV save in a checkpoint, if there is one."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return None
    text = f'{meta.get("cfg")} {meta.get("config")}'
    found = set(re.findall(r"""['"]?\bstyle['"]?\s*[=:]\s*['"](caffe|pytorch)['"]""", text))
    return found.pop() if len(found) == 1 else None


def _is_converted_from_caffe(transfer: GraftTransfer) -> bool:
    """Return whether norms have trivial statistics but trained weights, as converted Caffe models do."""
    tensors = {name: transfer.source[key] for name, key in transfer.plain.items()}
    means = [t for name, t in tensors.items() if name.endswith('.running_mean')]
    variances = [t for name, t in tensors.items() if name.endswith('.running_var')]
    scales = [t for name, t in tensors.items() if re.search(r'\bbn\d\.weight$', name)]
    return (
        bool(means)
        and not any(t.any() for t in means)
        and all(t.min() == t.max() for t in variances)
        and any(t.numel() > 1 and t.min() != t.max() for t in scales)
    )
