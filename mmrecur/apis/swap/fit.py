"""Whether what a swapped backbone starts from fits, and whether it then computes what it did."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmrecur.apis.swap.target import Replaced, build, outputs
from mmrecur.apis.swap.weights import PLAIN_DEPTHS, Start, largest_difference, randomize_norms, ways_out
from mmrecur.checkpoint import Report, graft
from mmrecur.checkpoint.grafts.mobilenet_names import mobilenet_names
from mmrecur.checkpoint.grafts.resnet_names import plain_names
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.checkpoint.unwrap import read_weights
from mmrecur.errors import CheckpointError, ToolError, TransferError
from mmrecur.models.backbones import Backbone

#: What a pretrained network has not: it is trained without these parts.
_EXTRAS = {'dcn', 'plugins', 'sac', 'conv_cfg'}


@dataclass
class Fit:
    """What a graft is known to compute.

    Attributes:
        difference (float, optional): Largest relative difference of the features before and after; None if
            it is not known.
        by_file (bool): Whether it is of the checkpoint itself, not of random weights.
        errors (dict[str, float]): Relative errors of what was fitted in the checkpoint's graft.
        notes (list[str]): Remarks for the user.
    """

    difference: float | None = None
    by_file: bool = False
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_start(
    start: Start,
    replaced: Replaced,
    scope: str | None,
    new: Backbone,
    args: Mapping[str, Any],
    image: Tensor,
) -> Fit:
    """Graft what the new backbone starts from, or random weights of that kind, and compare the features.

    A local file is read. What would have to be downloaded is not: a plain network with random weights is
    grafted in its place.

    Args:
        start (Start): What it starts from.
        replaced (Replaced): The replaced backbone.
        scope (str, optional): Default scope to build plain networks in.
        new (Backbone): Gets the weights.
        args (Mapping): Arguments that it was built with.
        image (Tensor): Images, shape (N, C, H, W).

    Returns:
        Fit: What is known.

    Raises:
        ToolError: If there is no such file, or the weights do not fit.
    """
    if start.kind == 'random':
        return Fit()
    plains = _plain_networks(start, replaced, scope, new, args)
    if start.kind == 'model':  # the trial grafts its checkpoint
        return Fit(_first_difference(plains, new, image))
    checkpoint = start.init_cfg['checkpoint']
    if '://' not in checkpoint:
        if start.is_named or Path(checkpoint).expanduser().is_file():
            return _check_file(start, plains, new, image)
        note = f'{checkpoint} is not there: whether it fits shows when training starts'
    elif start.is_named:
        note = f'{checkpoint} was not downloaded: whether it fits shows when training starts'
    if replaced.is_plain and not start.is_named:
        fit = Fit(_try_graft(next(plains), start, new, image))
        return fit if '://' in checkpoint else Fit(fit.difference, notes=[note])
    if '://' in checkpoint and not start.is_named:
        note = f'{checkpoint} was not downloaded: whether it fits shows when training starts'
    return Fit(_first_difference(plains, new, image), notes=[note])


def _plain_networks(
    start: Start, replaced: Replaced, scope: str | None, new: Backbone, args: Mapping[str, Any]
) -> Iterator[nn.Module]:
    """Networks whose weights the start may be, the likeliest first."""
    if replaced.is_plain:
        extras = _EXTRAS & replaced.unknown.keys()
        if start.depth is not None or extras:
            cfg = {k: copy.deepcopy(v) for k, v in replaced.cfg.items() if k not in extras}
            for option in ('stage_with_dcn', 'stage_with_sac'):
                cfg.pop(option, None)
            depth = {} if start.depth is None else dict(depth=start.depth)
            yield build({**cfg, **depth}, scope, 'a plain backbone')
        else:
            yield replaced.module
    elif isinstance(replaced.module, Backbone):
        yield replaced.module
    cfg = _counterpart(new, args, scope)
    if cfg is not None:
        try:
            yield build(cfg, scope, 'a plain backbone')
        except ToolError:  # a library that is not installed, or lacks an option
            return


def _counterpart(new: Backbone, args: Mapping[str, Any], scope: str | None) -> dict[str, Any] | None:
    """Config of the plain network that a backbone is made after, if it is a ResNet or MobileNetV2."""
    library = 'mmpretrain' if scope == 'mmpretrain' else 'mmdet'
    common = dict(out_indices=new.out_indices, in_channels=new.in_channels, norm_cfg=new.norm_cfg)
    if hasattr(new, 'width_mult'):
        common.pop('in_channels')
        return dict(type=f'{library}.MobileNetV2', widen_factor=new.width_mult, **common)
    if args.get('depth') not in PLAIN_DEPTHS or args.get('stem') == 'cifar':
        return None
    width = args.get('base_channels') or 64
    names = ('depth', 'style', 'deep_stem', 'avg_down', 'strides', 'dilations')
    cfg = {name: args[name] for name in names if args.get(name) is not None}
    cfg |= dict(type=f'{library}.ResNet', base_channels=width, stem_channels=width, **common)
    groups, base_width = args.get('groups', 1), args.get('base_width', 64)
    if groups > 1:
        cfg |= {'type': f'{library}.ResNeXt', 'groups': groups}
        cfg['width_per_group' if library == 'mmpretrain' else 'base_width'] = base_width
    elif base_width != 64:
        cfg |= dict(
            type='mmpretrain.ResNet', base_channels=width * base_width // 64, expansion=256 // base_width
        )
    return cfg


def _first_difference(plains: Iterator[nn.Module], new: Backbone, image: Tensor) -> float | None:
    """Difference of the features for the first plain network that can be grafted."""
    for plain in plains:
        try:
            return _try_graft(plain, None, new, image)
        except ToolError:
            continue
    return None


def _try_graft(plain: nn.Module, start: Start | None, new: Backbone, image: Tensor) -> float:
    """Graft a plain network with random weights and compare the features.

    So it is known without the checkpoint whether it will fit and what the graft will compute.
    """
    randomize_norms(plain, image)
    expected = outputs(plain, image, "the base's backbone")
    try:
        state, _ = graft(plain.state_dict(), new)
    except (TransferError, ValueError) as error:
        raise _misfit(start, error, new) from error
    new.load_state_dict(state)
    return largest_difference(expected, outputs(new, image, 'the new backbone'))


def _misfit(start: Start | None, error: Exception, new: Backbone) -> ToolError:
    whose = 'the weights'
    if start is not None:
        named = 'that init names' if start.is_named else 'that the base starts from'
        whose = f'the weights {named}, {start.init_cfg["checkpoint"]!r},'
    text = str(error)
    reason = text if len(text) < 500 else f'{text[:300]} ... {text[-180:]}'
    return ToolError(f'{whose} do not fit: {reason}. {ways_out(vars(new))}')


def _check_file(start: Start, plains: Iterator[nn.Module], new: Backbone, image: Tensor) -> Fit:
    """Graft a file, as training would, and compare the features with those of the network that it is of."""
    cfg = start.init_cfg
    try:
        loaded = load_checkpoint_file(cfg['checkpoint'])
    except (FileNotFoundError, CheckpointError) as error:
        raise ToolError(f'{error}. {ways_out(vars(new))}') from error
    options = cfg.get('strict', True), cfg.get('prefix'), cfg.get('ema', True)
    try:
        state, report = graft(loaded, new, *options)
    except (TransferError, ValueError) as error:
        raise _misfit(start, error, new) from error
    new.load_state_dict(state)
    notes = [note for note in report.notes if not note.startswith('relative error')]
    fit = Fit(by_file=True, errors=report.errors, notes=notes)
    source, _ = read_weights(loaded, *options[1:])
    for plain in plains:
        if _fill(plain, source):
            expected = outputs(plain, image, "the base's backbone")
            fit.difference = largest_difference(expected, outputs(new, image, 'the new backbone'))
            return fit
    if _is_whole(report):
        fit.difference = 0.0
    return fit


def _fill(plain: nn.Module, source: Mapping[str, Tensor]) -> bool:
    """Load a network's weights whatever library they are from; whether they are of such a network."""
    names = mobilenet_names if type(plain).__name__ == 'MobileNetV2' else plain_names
    own = plain.state_dict()
    theirs = names(source)
    filled = {}
    for name, key in names(own).items():
        if key.endswith('num_batches_tracked'):
            continue
        if name not in theirs or source[theirs[name]].numel() != own[key].numel():
            return False
        filled[key] = source[theirs[name]].reshape(own[key].shape)
    plain.load_state_dict(filled, strict=False)
    return True


def _is_whole(report: Report) -> bool:
    """Whether a file had all that the backbone has: it is of the same architecture."""
    rest = [key for key in report.initial if not key.endswith('num_batches_tracked')]
    return not report.errors and not rest
