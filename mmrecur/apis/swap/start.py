"""Choose the weights that a new backbone starts from, and check that they fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmrecur.apis.swap.features import build, feature_maps, largest_difference, randomize_norms
from mmrecur.apis.swap.plugins import lost_plugins
from mmrecur.apis.swap.target import Replaced
from mmrecur.checkpoint import (
    Report,
    graft,
)
from mmrecur.checkpoint.grafts.mobilenet_names import mobilenet_names
from mmrecur.checkpoint.grafts.resnet_names import plain_names
from mmrecur.checkpoint.io import (
    load_checkpoint_file,
)
from mmrecur.checkpoint.unwrap import read_weights
from mmrecur.errors import CheckpointError, ToolError, TransferError
from mmrecur.models.backbones import Backbone

#: Depths of the plain ResNets; a backbone of another depth has no plain network of the same depth.
PLAIN_DEPTHS = (18, 34, 50, 101, 152)
#: Largest relative difference of features that rounding alone explains.
EXACT = 1e-4
#: Options without which pretrained weights mean something else: option -> (usual value, reason).
_ALTERS_WEIGHTS = {
    'style': ('pytorch', 'Its weights expect the stride on the 1x1 convolutions'),
    'conv_cfg': (None, 'Its weights belong to another kind of convolution'),
}
#: Parts that a detector adds to its backbone after pretraining; the pretrained network lacks them.
_ADDED_PARTS = {'dcn', 'plugins', 'sac', 'conv_cfg'}


@dataclass(frozen=True)
class Start:
    """The weights that the new backbone starts from.

    Attributes:
        kind (str): ``'random'``; ``'graft'``, the weights of a plain network; or ``'model'``, a grafted
            checkpoint of the whole model.
        init_cfg (dict, optional): ``init_cfg`` of the backbone. None unless ``kind`` is ``'graft'``.
        depth (int, optional): Depth of the plain network if it differs from that of the replaced backbone.
        is_named (bool): Whether the user named the checkpoint, so that it may be of any plain network.
    """

    kind: str
    init_cfg: dict[str, Any] | None = None
    depth: int | None = None
    is_named: bool = False

    @property
    def checkpoint(self) -> str:
        """str: Checkpoint of the plain network."""
        return self.init_cfg['checkpoint']

    @property
    def is_remote(self) -> bool:
        """bool: Whether the checkpoint would have to be downloaded."""
        return '://' in self.checkpoint


@dataclass(frozen=True)
class Fit:
    """How well the weights that a backbone starts from fit.

    Attributes:
        difference (float, optional): Largest relative difference between the features of the plain network
            and those of the new backbone. None if unknown.
        is_checked (bool): Whether the checkpoint itself was grafted, rather than random weights of a plain
            network in its place.
        errors (dict[str, float]): Relative errors of fitted weights, by place; see :class:`Report`.
        notes (tuple[str, ...]): Notes for the user.
    """

    difference: float | None = None
    is_checked: bool = False
    errors: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """bool: Whether the new backbone is known to compute the same function as the plain network."""
        return self.difference is not None and self.difference <= EXACT


def pretrained(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the initializer in a module's config that loads a checkpoint, or None if there is none."""
    given = cfg.get('init_cfg')
    for item in [given] if isinstance(given, Mapping) else given or []:
        if 'checkpoint' in item:
            return dict(item)
    if isinstance(cfg.get('pretrained'), str):
        return dict(type='Pretrained', checkpoint=cfg['pretrained'])
    return None


def choose_start(init: str, replaced: Replaced, args: Mapping[str, Any]) -> Start:
    """Choose the weights that the new backbone starts from.

    Args:
        init (str): ``'base'`` for the weights that the replaced backbone starts from, ``'none'`` for random
            weights, or a checkpoint of a plain network.
        replaced (Replaced): The replaced backbone.
        args (Mapping): Arguments of the new backbone.

    Returns:
        Start: The choice.

    Raises:
        ToolError: If the base's weights do not suit the new backbone; the message names alternatives.
    """
    if init == 'none':
        return Start('random')
    if init != 'base':
        return Start('graft', dict(type='mmrecur.Graft', checkpoint=init), is_named=True)
    found = pretrained(replaced.cfg)
    if found is None:
        return Start('random')
    if found['type'] == 'mmrecur.Graft':
        return Start('graft', found)
    _check_kind(found['checkpoint'], replaced, args)
    init_cfg = {**found, 'type': 'mmrecur.Graft'}
    old_depth, depth = replaced.options.get('depth'), args.get('depth')
    if old_depth == depth or depth not in PLAIN_DEPTHS:
        return Start('graft', init_cfg)
    if found['checkpoint'] != f'torchvision://resnet{old_depth}':
        raise ToolError(
            f'the base starts from {found["checkpoint"]!r}, weights of depth {old_depth}; the new backbone '
            f'has depth {depth}. {_alternatives(depth)}'
        )
    return Start('graft', {**init_cfg, 'checkpoint': f'torchvision://resnet{depth}'}, depth)


def _check_kind(checkpoint: str, replaced: Replaced, args: Mapping[str, Any]) -> None:
    """Raise if the base's weights belong to a network that the new backbone cannot take over."""
    if not replaced.is_plain:
        raise ToolError(
            f'the base starts from {checkpoint!r}, weights of a {replaced.kind}, which no backbone of this '
            f'package can take over. {_alternatives(args.get("depth"))}'
        )
    for option, (usual, reason) in _ALTERS_WEIGHTS.items():
        value = replaced.options.get(option, replaced.unknown.get(option, usual))
        if value != usual and args.get(option, usual) != value and not _loads_plain_weights(value):
            raise ToolError(
                f'the base starts from {checkpoint!r} and its backbone has {option}={value!r}, which the new '
                f'backbone cannot have. {reason}, so the new backbone would compute something else. '
                f'{_alternatives(args.get("depth"))}'
            )


def _loads_plain_weights(value: Any) -> bool:
    """Return whether an option is a convolution (of DetectoRS) that starts as a plain one."""
    return isinstance(value, Mapping) and value.get('type') == 'ConvAWS'


def _alternatives(depth: int | None) -> str:
    example = f', such as init="torchvision://resnet{depth}"' if depth in PLAIN_DEPTHS else ''
    return (
        'Allowed: init="none" (--init none) for random weights, or the checkpoint of a plain network that '
        f'fits{example}'
    )


def check_start(
    start: Start, replaced: Replaced, scope: str | None, new: Backbone, args: Mapping[str, Any], image: Tensor
) -> Fit:
    """Graft the weights that the new backbone starts from, and compare the features.

    A local checkpoint is read. In place of a checkpoint that would have to be downloaded, random weights of
    a plain network are grafted.

    Args:
        start (Start): The weights.
        replaced (Replaced): The replaced backbone.
        scope (str, optional): Default scope in which plain networks are built.
        new (Backbone): The new backbone. It is loaded with the grafted weights.
        args (Mapping): Arguments that ``new`` was built with.
        image (Tensor): Images to compare on, shape (N, C, H, W).

    Returns:
        Fit: The result of the comparison.

    Raises:
        ToolError: If a file that the user named does not exist, or if the weights do not fit.
    """
    if start.kind == 'random':
        return Fit()
    plains = _plain_networks(start, replaced, scope, new, args)
    if start.kind == 'model':  # the trial grafts the checkpoint itself
        return Fit(_first_difference(plains, new, image))
    if not start.is_remote and (start.is_named or Path(start.checkpoint).expanduser().is_file()):
        return _check_file(start, plains, new, image)
    state = 'was not downloaded' if start.is_remote else 'does not exist yet'
    note = f'{start.checkpoint} {state}: whether it fits will show when training starts'
    if replaced.is_plain and not start.is_named:
        difference = _try_graft(next(plains), start, new, image)
        return Fit(difference, notes=() if start.is_remote else (note,))
    return Fit(_first_difference(plains, new, image), notes=(note,))


def _plain_networks(
    start: Start, replaced: Replaced, scope: str | None, new: Backbone, args: Mapping[str, Any]
) -> Iterator[nn.Module]:
    """Yield networks that the weights may belong to, the most likely first."""
    if replaced.is_plain:
        added = _ADDED_PARTS & replaced.unknown.keys()
        is_own = start.kind == 'model' or not start.is_remote  # may hold the weights of plugins
        if is_own and added == {'plugins'} and not lost_plugins(replaced, args):
            yield replaced.module
        if start.depth is not None or added:
            left_out = {*added, 'stage_with_dcn', 'stage_with_sac'}
            cfg = {k: copy.deepcopy(v) for k, v in replaced.cfg.items() if k not in left_out}
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
        except ToolError:  # the library is not installed, or its class lacks an option
            return


def _counterpart(new: Backbone, args: Mapping[str, Any], scope: str | None) -> dict[str, Any] | None:
    """Return the config of the plain ResNet or MobileNetV2 with the architecture of a backbone."""
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
    """Return the difference for the first plain network that can be grafted, or None if none can."""
    for plain in plains:
        try:
            return _try_graft(plain, None, new, image)
        except ToolError:
            continue
    return None


def _try_graft(plain: nn.Module, start: Start | None, new: Backbone, image: Tensor) -> float:
    """Graft a plain network with random weights, and return the difference of the features.

    This shows without the checkpoint whether its keys and shapes fit and how exact the graft is.
    """
    randomize_norms(plain, image)
    expected = feature_maps(plain, image, "the base's backbone")
    _graft_into(new, plain.state_dict(), start)
    return largest_difference(expected, feature_maps(new, image, 'the new backbone'))


def _graft_into(new: Backbone, weights: Mapping[str, Any], start: Start | None, *options: Any) -> Report:
    """Graft weights and load them; raise a ToolError if they do not fit."""
    try:
        state, report = graft(weights, new, *options)
    except (TransferError, ValueError) as error:
        whose = 'the weights'
        if start is not None:
            named = 'that init names' if start.is_named else 'that the base starts from'
            whose = f'the weights {named}, {start.checkpoint!r},'
        text = str(error)
        reason = text if len(text) < 500 else f'{text[:300]} ... {text[-180:]}'
        alternatives = _alternatives(getattr(new, 'depth', None))
        raise ToolError(f'{whose} do not fit: {reason}. {alternatives}') from error
    new.load_state_dict(state)
    return report


def _check_file(start: Start, plains: Iterator[nn.Module], new: Backbone, image: Tensor) -> Fit:
    """Graft a checkpoint file, and compare the features with those of the network that it belongs to."""
    cfg = start.init_cfg
    try:
        loaded = load_checkpoint_file(start.checkpoint)
    except (FileNotFoundError, CheckpointError) as error:
        raise ToolError(f'{error}. {_alternatives(getattr(new, "depth", None))}') from error
    prefix, ema = cfg.get('prefix'), cfg.get('ema', True)
    report = _graft_into(new, loaded, start, cfg.get('strict', True), prefix, ema)
    difference = 0.0 if _is_complete(report) else None
    source, _ = read_weights(loaded, prefix, ema)
    for plain in plains:
        if _load_plain(plain, source):
            expected = feature_maps(plain, image, "the base's backbone")
            difference = largest_difference(expected, feature_maps(new, image, 'the new backbone'))
            break
    return Fit(difference, True, dict(report.errors), tuple(report.notes))


def _load_plain(plain: nn.Module, source: Mapping[str, Tensor]) -> bool:
    """Load a plain network with weights in any library's layout; return whether they fit."""
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


def _is_complete(report: Report) -> bool:
    """Return whether a file held every weight of the backbone, so that nothing was fitted or left random."""
    rest = [key for key in report.initial if not key.endswith('num_batches_tracked')]
    return not report.errors and not rest
