"""Plan a swap: the new backbone, the weights it starts from, and the edits of the config."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from mmrecur.apis.runner import (
    load_config,
)
from mmrecur.apis.swap.edits import (
    Edit,
    apply_edits,
    channel_edits,
    drop_edits,
    hook_edits,
    import_edits,
    load_edits,
    optimizer_edits,
)
from mmrecur.apis.swap.features import build, feature_maps, probe, randomize_norms
from mmrecur.apis.swap.names import find_backbone, signature
from mmrecur.apis.swap.plugins import kept_plugins, lost_plugins
from mmrecur.apis.swap.start import Fit, Start, check_start, choose_start
from mmrecur.apis.swap.target import ARCHITECTURE, Replaced, Target, find_target, read_replaced
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError
from mmrecur.models.backbones import Backbone

#: Options of the replaced backbone that are reported if they are lost, unless they have these values.
_USUAL = {'style': 'pytorch', 'attention': None, 'groups': 1, 'base_width': 64, 'stem': 'imagenet'}


@dataclass(frozen=True)
class Swap:
    """A planned swap.

    Attributes:
        base (Config): A copy of the config whose backbone is swapped.
        target (Target): The part of ``base`` with the backbone.
        old (str): Class and main options of the replaced backbone.
        new (str): Class and main options of the new backbone.
        start (Start): The weights that the new backbone starts from.
        fit (Fit): How well these weights fit.
        edits (tuple[Edit, ...]): The edits that turn ``base`` into the new config.
        unfrozen (tuple[Edit, ...]): Options of the replaced backbone that the new one does not keep, because
            it would train too few of its weights. Paths start at ``'backbone'``.
        notes (tuple[str, ...]): Notes for the user.
    """

    base: Config
    target: Target
    old: str
    new: str
    start: Start
    fit: Fit
    edits: tuple[Edit, ...]
    unfrozen: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def config(self) -> Config:
        """Config: The new config."""
        return apply_edits(self.base, self.edits)


def swap_backbone(
    cfg: Config | str, name: str | dict[str, Any], init: str = 'base', at: str | None = None
) -> Config:
    """Swap the backbone of a config for one of this package.

    The new backbone keeps those options of the old one that it has too. The input channels of the neck or
    the heads are adapted. The new config imports ``mmrecur`` and has the hooks and parameter-wise optimizer
    rules that the backbone needs besides its own. Both backbones are built and compared.

    Args:
        cfg (Config or str): A config of mmdet, of mmpretrain or your own, or its name as for
            :func:`mmrecur.engine.configs.load_config`. It is not changed.
        name (str or dict): A name from :func:`list_backbones`, such as ``'rla-eca-resnet50'``; one without
            a depth keeps the depth of the old backbone. Or a module with arguments, such as
            ``"mmrecur.RLAResNet(depth=50)"``.
        init (str): Weights that the backbone starts from: ``'base'`` grafts the weights that the old
            backbone starts from, ``'none'`` leaves random weights; otherwise a checkpoint of a plain
            network, such as ``'torchvision://resnet50'``. Defaults to 'base'.
        at (str, optional): Dotted path of the part whose backbone is swapped if several have one, such as
            ``'model.detector'``. Defaults to None.

    Returns:
        Config: The new config.

    Raises:
        ToolError: If the backbone cannot be swapped; the message gives the reason.

    Example:
        >>> from mmrecur.apis import swap_backbone
        >>> cfg = swap_backbone('mmdet::atss/atss_r50_fpn_1x_coco.py', 'rla-resnet')  # doctest: +SKIP
        >>> cfg.model.backbone.type  # doctest: +SKIP
        'mmrecur.RLAResNet'
    """
    return plan_swap(cfg, name, init, at).config


def plan_swap(
    cfg: Config | str,
    name: str | dict[str, Any],
    init: str = 'base',
    at: str | None = None,
    load_from: str | None = None,
    unfreeze: bool = True,
) -> Swap:
    """Plan a swap without changing anything.

    Args:
        cfg, name, init, at: See :func:`swap_backbone`.
        load_from (str, optional): Path of a grafted checkpoint of the whole model, which the new config
            loads. Defaults to None.
        unfreeze (bool): Train the whole backbone and the statistics of its norms if the new weights need it.
            False keeps the options of the base, for a model that has been recovered. Defaults to True.

    Returns:
        Swap: The plan.

    Raises:
        ToolError: If the backbone cannot be swapped; the message gives the reason.
    """
    with own_randomness():
        base = load_config(cfg) if isinstance(cfg, str) else copy.deepcopy(cfg)
        return _plan(base, find_target(base, at), name, init, load_from, unfreeze)


def _plan(
    base: Config,
    target: Target,
    name: str | dict[str, Any],
    init: str,
    load_from: str | None,
    unfreeze: bool,
) -> Swap:
    replaced = read_replaced(target)
    family, fixed = find_backbone(name)
    args = _arguments(target, replaced, family, fixed)
    start = Start('model') if load_from and init != 'none' else choose_start(init, replaced, args)
    dropped = [] if load_from else _dropped_checkpoint(base, target, init)
    image, old_maps = probe(replaced.module, args.get('in_channels', 3))
    is_matched = 'out_indices' not in args
    if is_matched:
        args['out_indices'] = _matching_stages(family, args, target.scope, old_maps, image)
    backbone = _build(family, args, target.scope)
    _check_sizes(backbone, old_maps, image)
    fit = check_start(start, replaced, target.scope, backbone, args, image)
    thawed, reasons = _unfreeze(args, fixed, start, fit) if unfreeze else ({}, [])
    new = _backbone_config(family, {**args, **thawed}, start)

    old_channels = [m.size(1) for m in old_maps]
    edits = [
        *dropped,
        *channel_edits(target, old_channels, backbone.out_channels),
        Edit((*target.path, 'backbone'), target.backbone, new),
        *import_edits(base),
        *hook_edits(base, backbone.required_hooks),
        *optimizer_edits(base, backbone.required_paramwise_cfg),
        *(load_edits(base, target, load_from) if load_from else []),
    ]
    notes = [
        *(f'the checkpoint of the whole model, {edit.before}, is not loaded any more' for edit in dropped),
        *fit.notes,
        *reasons,
        *_needs(base, target, backbone),
        *_losses(replaced.module, backbone, old_channels, is_matched),
        *_lost_options(replaced, family, new),
        *_untrained_norms(start, new),
    ]
    return Swap(
        base=base,
        target=target,
        old=str(replaced),
        new=f'{family.__name__}({_main_options(new)})',
        start=start,
        fit=fit,
        edits=tuple(edits),
        unfrozen=tuple(Edit(('backbone', key), args.get(key), value) for key, value in thawed.items()),
        notes=tuple(notes),
    )


def _arguments(
    target: Target, replaced: Replaced, family: type[Backbone], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the new backbone: kept, required by classifiers, and fixed by its name."""
    known = signature(family)
    unknown = fixed.keys() - known.keys()
    if unknown:
        raise ToolError(f'{family.__name__} has no {", ".join(sorted(unknown))}; allowed: {", ".join(known)}')
    args = {key: value for key, value in replaced.options.items() if key in known}
    if 'depth' not in known:  # other stages than a ResNet's: options given for each stage do not apply
        args = {key: value for key, value in args.items() if key not in (*ARCHITECTURE, 'out_indices')}
    if replaced.options.get('depth') is None or 'stem' in replaced.options and 'stem' not in known:
        args.pop('out_indices', None)
    if target.is_classifier:
        args.update(family.classifier_options)
    args.update(fixed)
    if 'plugins' in known and (kept := kept_plugins(replaced, args.get('attention'))):
        args.setdefault('plugins', kept)
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in args:
            raise ToolError(
                f'{family.__name__} needs {key}, which the base ({replaced}) does not determine; choose a '
                f'name with it: {", ".join(n for n, a in family.architectures.items() if key in a)}'
            )
    return args


def _dropped_checkpoint(base: Config, target: Target, init: str) -> list[Edit]:
    """Return the edit that drops a checkpoint of the whole model; raise if its weights are wanted."""
    edits = drop_edits(base, target)
    if edits and init == 'base':
        raise ToolError(
            f'the base loads the weights of a whole model, {edits[0].before!r}, which do not fit a new '
            'backbone as they are. Allowed: tools/swap_backbone.py --checkpoint FILE to graft them; '
            'init="none" (--init none) or the checkpoint of a plain network as init to do without them'
        )
    return edits


def _backbone_config(family: type[Backbone], args: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """Return the config of the new backbone without options that have their default."""
    cfg: dict[str, Any] = dict(type=f'mmrecur.{family.__name__}')
    for key, default in signature(family).items():
        if key == 'init_cfg' or key not in args:
            continue
        value = args[key]
        if key == 'norm_cfg' and default is None:
            default = dict(type='BN', requires_grad=True)
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        if value != default or type(value) is not type(default) and not isinstance(value, dict):
            cfg[key] = value
    init_cfg = args.get('init_cfg', start.init_cfg)
    if 'init_cfg' in args or init_cfg is not None:
        cfg['init_cfg'] = init_cfg
    return cfg


def _build(family: type[Backbone], args: Mapping[str, Any], scope: str | None) -> Backbone:
    return build(_backbone_config(family, args, Start('random')), scope, 'the new backbone')


def _matching_stages(
    family: type[Backbone], args: Mapping[str, Any], scope: str | None, maps: Sequence[Tensor], image: Tensor
) -> tuple[int, ...]:
    """Return ``out_indices`` of the stages whose maps are as large as those of the replaced backbone.

    Of several stages with maps of that size, the last one with the same width is taken, or else the last.
    """
    count = _build(family, {**args, 'out_indices': (0,)}, scope).max_stages
    full = _build(family, {**args, 'out_indices': tuple(range(count))}, scope)
    stages = feature_maps(full, image, 'the new backbone')
    found = []
    for wanted in maps:
        fits = [i for i, stage in enumerate(stages) if stage.shape[2:] == wanted.shape[2:]]
        same = [i for i in fits if stages[i].size(1) == wanted.size(1)]
        found += (same or fits)[-1:]
    if len(found) < len(maps) or sorted(set(found)) != found:
        height = image.size(2)
        raise ToolError(
            f"the outputs of the base's backbone have strides {[height // m.size(2) for m in maps]}; the "
            f'stages of {family.__name__} have {[height // s.size(2) for s in stages]}, and each stage can '
            'stand for one output only'
        )
    return tuple(found)


def _check_sizes(backbone: Backbone, old_maps: Sequence[Tensor], image: Tensor) -> None:
    randomize_norms(backbone, image)
    maps = feature_maps(backbone, image, 'the new backbone')
    old, new = ([tuple(m.shape[2:]) for m in group] for group in (old_maps, maps))
    if old != new:
        raise ToolError(
            f'on an image of {tuple(image.shape[2:])} the old backbone returns maps of {old}, the new one '
            f'maps of {new}; the following modules need the same sizes'
        )


def _unfreeze(
    args: Mapping[str, Any], fixed: Mapping[str, Any], start: Start, fit: Fit
) -> tuple[dict[str, Any], list[str]]:
    """Return options that let new weights be trained, and notes with the reason.

    If the new backbone starts with exactly the function of the old one, only new weights have to be trained:
    the stem may stay frozen, and norms may keep their statistics. Otherwise everything has to be trained.
    Options that the user fixed stay.
    """
    frozen, norm_cfg = args.get('frozen_stages', -1), args.get('norm_cfg') or {}
    if start.kind != 'random' and fit.is_exact:
        if frozen <= 0 or 'frozen_stages' in fixed:
            return {}, []
        note = 'frozen_stages: only the stem stays frozen, since the new weights of each stage need training'
        return {'frozen_stages': 0}, [note]
    changes: dict[str, Any] = {}
    if frozen >= 0:
        changes['frozen_stages'] = -1
    if args.get('norm_eval'):
        changes['norm_eval'] = False
    if norm_cfg.get('requires_grad') is False:
        changes['norm_cfg'] = {**norm_cfg, 'requires_grad': True}
    changes = {key: value for key, value in changes.items() if key not in fixed}
    if not changes:
        return {}, []
    reason = (
        'the backbone starts from random weights'
        if start.kind == 'random'
        else 'the grafted backbone does not compute the same function, and its norms need new statistics'
    )
    return changes, [f'{reason}; the values of the base for {", ".join(changes)} would prevent training']


def _needs(base: Config, target: Target, backbone: Backbone) -> list[str]:
    notes = []
    rules = backbone.required_paramwise_cfg
    if rules and base.get('optim_wrapper') is None:
        notes.append(f'the config has no optim_wrapper; training needs paramwise_cfg={dict(rules)}')
    if target.is_nested:
        notes.append(f'only the backbone of {target.name} is swapped')
    return notes


def _losses(old: nn.Module, new: Backbone, old_channels: Sequence[int], is_matched: bool) -> list[str]:
    """Return notes on stages that the new backbone does without, and on narrower maps."""
    notes = []
    before, after = (sum(p.numel() for p in module.parameters()) for module in (old, new))
    size = f'{after:,} parameters instead of {before:,} ({100 * (after / before - 1):+.0f} %)'
    if is_matched and new.num_stages < new.max_stages and after < before:
        notes.append(
            f'{type(new).__name__} ends with stage {new.num_stages} of {new.max_stages}, whose map has the '
            f'size of the last map of the base: {size}'
        )
    if any(n < o for o, n in zip(old_channels, new.out_channels)):
        end = '' if notes else f': {size}'
        notes.append(f'maps have {[*new.out_channels]} channels instead of {[*old_channels]}{end}')
    return notes


def _lost_options(replaced: Replaced, family: type[Backbone], new: Mapping[str, Any]) -> list[str]:
    known = signature(family)
    lost = {key: value for key, value in replaced.unknown.items() if key not in new and key != 'plugins'}
    if plugins := lost_plugins(replaced, new):
        lost['plugins'] = plugins
    for key, usual in _USUAL.items():
        if replaced.options.get(key, usual) != usual and key not in known:
            lost[key] = replaced.options[key]
    shown = {
        key: ', '.join(str(item.get('cfg', item)) for item in value) if isinstance(value, list) else value
        for key, value in lost.items()
    }
    return [f'dropped, the new backbone has no counterpart: {key}={value}' for key, value in shown.items()]


def _untrained_norms(start: Start, new: Mapping[str, Any]) -> list[str]:
    if start.kind == 'random' or (new.get('norm_cfg') or {}).get('requires_grad') is not False:
        return []
    return ['norm_cfg.requires_grad=False: added norms are not trained either']


def _main_options(cfg: Mapping[str, Any]) -> str:
    shown = ('depth', 'attention', 'groups', 'base_width', 'deep_stem', 'style', 'with_hidden')
    return ', '.join(f'{key}={cfg[key]!r}' for key in shown if key in cfg)
