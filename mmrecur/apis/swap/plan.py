"""A config with its backbone replaced."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor

from mmrecur.apis.runner import ToolError, load_config
from mmrecur.models.backbones import Backbone

from .channels import set_channels
from .host import ARCHITECTURE, Host, Replaced, build, find_host, outputs, read_replaced
from .names import find_backbone, signature
from .weights import EXACT, Start, _pretrained, choose_start, settle, try_graft

#: Image on which backbones are compared: both sides are multiples of 32, and differ.
_PROBE = (96, 128)


@dataclass
class Swap:
    """A replaced backbone.

    Attributes:
        base (Config): The config as it was.
        config (Config): The config with the new backbone.
        host (Host): The part of ``config`` that has it.
        old (str): The replaced backbone.
        new (str): The new one.
        start (Start): What it starts from.
        difference (float, optional): Largest relative difference of the features of both, with a plain
            network's random weights grafted; None if it starts from none.
        changes (list[tuple]): Place, value before and value now.
        notes (list[str]): What else the user should know.
    """

    base: Config
    config: Config
    host: Host
    old: str
    new: str
    start: Start
    difference: float | None = None
    changes: list[tuple[str, Any, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def swap_backbone(
    cfg: Config | str, name: str | dict[str, Any], init: str = 'base', at: str | None = None
) -> Config:
    """Replace the backbone of a config by one of this package.

    Options of the old backbone that the new one has too are kept. Input channels of the neck or the heads
    follow; ``mmrecur`` is imported, and hooks and parameter-wise rules that the backbone needs are added
    to those the config has. Both backbones are built and compared on the way.

    Args:
        cfg (Config or str): A config of mmdet, mmpretrain or a user, or its name as for
            :func:`mmrecur.apis.runner.load_config`. It is not changed.
        name (str or dict): A name of :func:`list_backbones`, such as ``'rla-eca-resnet50'``; one without a
            depth keeps that of the old backbone. Or a module as in ``"mmrecur.RLAResNet(depth=50)"``.
        init (str): What the backbone starts from: ``'base'``, what the old one starts from, grafted;
            ``'none'``, random weights; or a checkpoint of a plain network, such as
            ``'torchvision://resnet50'``. Defaults to 'base'.
        at (str, optional): Which part of the model, if several have a backbone, such as
            ``'model.detector'``. Defaults to None.

    Returns:
        Config: The new config.

    Raises:
        ToolError: If the backbone cannot be replaced; the message says why.

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
) -> Swap:
    """Replace a backbone and keep an account.

    Args:
        cfg, name, init, at: See :func:`swap_backbone`.
        load_from (str, optional): A grafted checkpoint of the whole model that the new config loads.
            Defaults to None.

    Returns:
        Swap: The new config and what is different.

    Raises:
        ToolError: If the backbone cannot be replaced.
    """
    base = load_config(cfg) if isinstance(cfg, str) else cfg
    config = copy.deepcopy(base)
    host = find_host(config, at)
    replaced = read_replaced(host)
    family, fixed = find_backbone(name)
    args = _arguments(host, replaced, family, fixed)
    start = Start(None, 'model') if load_from else choose_start(init, replaced, args)
    swap = Swap(base, config, host, str(replaced), '', start)
    _check_whole_checkpoint(swap, init)
    _freeze_what_is_trained(swap, args, fixed)
    image = torch.rand(1, args.get('in_channels', 3), *_PROBE, generator=torch.Generator().manual_seed(0))
    maps = outputs(replaced.module, image, "the base's backbone")
    if 'out_indices' not in args:
        args['out_indices'] = _matching_indices(family, args, host, maps, image)
    new = _new_config(family, args, start)
    backbone = build(new, host.scope, 'the new backbone')
    _replace(swap, new, backbone, maps, image)
    swap.new = f'{family.__name__}({_shown(new)})'
    if start.kind == 'graft' and replaced.is_plain and init == 'base':
        swap.difference = try_graft(replaced, start, host.scope, backbone, image)
        if swap.difference > EXACT and new.get('norm_eval'):
            swap.notes.append(
                'norm_eval=True, as in the base, keeps the statistics that norms had with the weights from '
                'before: norm_eval=False lets them follow'
            )
    _note_options(swap, replaced, new)
    if load_from:
        _load(swap, load_from)
    return swap


def _shown(cfg: Mapping[str, Any]) -> str:
    shown = ('depth', 'attention', 'groups', 'base_width', 'deep_stem', 'style', 'with_hidden')
    return ', '.join(f'{key}={cfg[key]!r}' for key in shown if key in cfg)


def _arguments(
    host: Host, replaced: Replaced, family: type[Backbone], fixed: dict[str, Any]
) -> dict[str, Any]:
    """What the new backbone is built with: taken over, declared for classifiers, fixed by its name."""
    known = signature(family)
    unknown = fixed.keys() - known.keys()
    if unknown:
        raise ToolError(f'{family.__name__} has no {", ".join(sorted(unknown))}; allowed: {", ".join(known)}')
    args = {key: value for key, value in replaced.options.items() if key in known}
    if 'depth' not in known:  # another architecture: numbers per stage mean other stages
        args = {key: value for key, value in args.items() if key not in (*ARCHITECTURE, 'out_indices')}
    if replaced.options.get('depth') is None:
        args.pop('out_indices', None)
    if host.is_classifier:
        args.update(family.classifier_options)
    args.update(fixed)
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in args:
            raise ToolError(
                f'{family.__name__} needs {key}, which the base ({replaced}) does not tell; name a backbone '
                f'that says it: {", ".join(n for n, a in family.architectures.items() if key in a)}'
            )
    return args


def _check_whole_checkpoint(swap: Swap, init: str) -> None:
    """A checkpoint of the whole model, which the base loads, does not fit any more."""
    config, model = swap.config, swap.host.model
    whole = config.get('load_from') or (_pretrained(model) or {}).get('checkpoint')
    if whole is None or swap.start.kind == 'model':
        return
    if init == 'base':
        raise ToolError(
            f'the base loads the weights of a whole model, {whole!r}, which do not fit a new backbone as '
            'they are. Allowed: to graft them, tools/swap_backbone.py --checkpoint FILE; to do without, '
            'init="none" (--init none) or the checkpoint of a plain network as init'
        )
    swap.notes.append(f'the weights of the whole model that the base loads, {whole}, are left out')
    if config.get('load_from'):
        config.load_from = None
    else:
        model.pop('init_cfg')


def _freeze_what_is_trained(swap: Swap, args: dict[str, Any], fixed: Mapping[str, Any]) -> None:
    """Freeze only what is good as it is."""
    frozen = args.get('frozen_stages', -1)
    if 'frozen_stages' in fixed:
        return
    if swap.start.kind != 'random':
        if frozen > 0:
            args['frozen_stages'] = 0
            swap.changes.append(('backbone.frozen_stages', frozen, 0))
            swap.notes.append(
                'frozen_stages: only the stem stays frozen, since what is new in a stage has to learn'
            )
        return
    changes = {}
    if frozen >= 0:
        changes['frozen_stages'] = -1
    if args.get('norm_eval') and 'norm_eval' not in fixed:
        changes['norm_eval'] = False
    if (args.get('norm_cfg') or {}).get('requires_grad') is False and 'norm_cfg' not in fixed:
        changes['norm_cfg'] = {**args['norm_cfg'], 'requires_grad': True}
    for key, value in changes.items():
        swap.changes.append((f'backbone.{key}', args.get(key), value))
        args[key] = value
    if changes:
        swap.notes.append(f'random weights at first: {", ".join(changes)} would keep them so')


def _matching_indices(
    family: type[Backbone], args: Mapping[str, Any], host: Host, maps: Sequence[Tensor], image: Tensor
) -> tuple[int, ...]:
    """Stages whose maps are as large as the replaced ones; of equal ones the same width, else the last."""
    probe = None
    for number in range(12, 0, -1):
        try:
            cfg = _new_config(family, {**args, 'out_indices': tuple(range(number))}, Start(None, 'random'))
            probe = build(cfg, host.scope, 'the new backbone')
            break
        except ToolError as error:
            if 'out_indices' not in str(error):
                raise
    stages = outputs(probe, image, 'the new backbone')
    found = []
    for wanted in maps:
        fits = [i for i, stage in enumerate(stages) if stage.shape[2:] == wanted.shape[2:]]
        same = [i for i in fits if stages[i].size(1) == wanted.size(1)]
        if not fits:
            break
        found.append((same or fits)[-1])
    if len(found) < len(maps) or sorted(set(found)) != found:
        height = image.size(2)
        raise ToolError(
            f"the outputs of the base's backbone have strides {[height // m.size(2) for m in maps]}; "
            f'{family.__name__} has stages of {[height // s.size(2) for s in stages]}, each once at most'
        )
    return tuple(found)


def _new_config(family: type[Backbone], args: Mapping[str, Any], start: Start) -> ConfigDict:
    """Config of the new backbone, without what is its default."""
    cfg = ConfigDict(type=f'mmrecur.{family.__name__}')
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
    if 'init_cfg' in args:
        cfg.init_cfg = args['init_cfg']
    elif start.init_cfg is not None:
        cfg.init_cfg = start.init_cfg
    return cfg


def _replace(
    swap: Swap, new: ConfigDict, backbone: Backbone, old_maps: Sequence[Tensor], image: Tensor
) -> None:
    """Put the backbone and what it needs into the config."""
    settle(backbone, image)
    maps = outputs(backbone, image, 'the new backbone')
    sizes = [[tuple(m.shape[2:]) for m in group] for group in (old_maps, maps)]
    if sizes[0] != sizes[1]:
        raise ToolError(
            f'on an image of {_PROBE} the old backbone gives maps of {sizes[0]}, the new one of {sizes[1]}: '
            'what reads them needs the same'
        )
    model, config, root = swap.host.model, swap.config, swap.host.path
    swap.changes += set_channels(model, [m.size(1) for m in old_maps], backbone.out_channels)
    model.backbone = new
    imports = dict(config.get('custom_imports') or dict(imports=[], allow_failed_imports=False))
    names = [imports['imports']] if isinstance(imports['imports'], str) else list(imports['imports'])
    if 'mmrecur' not in names:
        config.custom_imports = dict(imports, imports=[*names, 'mmrecur'])
        swap.changes.append(('custom_imports', names or None, [*names, 'mmrecur']))
    present = {re.sub(r'^.*\.', '', str(hook.get('type'))) for hook in config.get('custom_hooks') or []}
    missing = [dict(h) for h in backbone.required_hooks if h['type'].rpartition('.')[2] not in present]
    if missing:
        config.custom_hooks = [*(config.get('custom_hooks') or []), *missing]
        swap.changes += [('custom_hooks', None, hook) for hook in missing]
    if backbone.required_paramwise_cfg:
        _add_paramwise(swap, backbone.required_paramwise_cfg)
    if root != 'model':
        swap.notes.append(f'the backbone is that of {root}; other parts of the model are as they were')


def _add_paramwise(swap: Swap, rules: Mapping[str, Any]) -> None:
    wrapper = swap.config.get('optim_wrapper')
    if wrapper is None:
        swap.notes.append(f'the config has no optim_wrapper; training needs paramwise_cfg={dict(rules)}')
        return
    constructor = wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
    if constructor.rpartition('.')[2] != 'DefaultOptimWrapperConstructor':
        raise ToolError(
            f'optim_wrapper.constructor={constructor!r} may not follow the rules that the backbone needs, '
            f'paramwise_cfg={dict(rules)}; allowed: DefaultOptimWrapperConstructor'
        )
    before = copy.deepcopy(wrapper.get('paramwise_cfg'))
    wrapper.paramwise_cfg = _merged(before or {}, rules)
    if wrapper.paramwise_cfg != before:
        swap.changes.append(('optim_wrapper.paramwise_cfg', before, wrapper.paramwise_cfg.to_dict()))


def _merged(own: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both say something, the config's own."""
    merged = dict(own)
    for key, value in added.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged.setdefault(key, value)
    return merged


def _note_options(swap: Swap, replaced: Replaced, new: Mapping[str, Any]) -> None:
    lost = {k: v for k, v in replaced.unknown.items() if k not in new}
    lost |= {
        key: replaced.options[key]
        for key, usual in {'style': 'pytorch', 'attention': None}.items()
        if replaced.options.get(key, usual) != usual and key not in new
    }
    for key, value in lost.items():
        shown = value if not isinstance(value, list) else ', '.join(str(v.get('cfg', v)) for v in value)
        swap.notes.append(f'left out, the new backbone has no counterpart: {key}={shown}')


    if swap.start.kind != 'random' and (new.get('norm_cfg') or {}).get('requires_grad') is False:
        swap.notes.append('norm_cfg.requires_grad=False: norms that are new do not learn either')


def _load(swap: Swap, load_from: str) -> None:
    model, config = swap.host.model, swap.config
    if swap.host.is_nested or _pretrained(model):
        # load_from is for the whole model, of which this is a part
        before = (_pretrained(model) or {}).get('checkpoint')
        model.init_cfg = dict(type='Pretrained', checkpoint=load_from)
        swap.changes.append((f'{swap.host.path}.init_cfg', before, load_from))
    else:
        swap.changes.append(('load_from', config.get('load_from'), load_from))
        config.load_from = load_from
