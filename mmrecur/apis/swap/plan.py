"""A config with its backbone replaced."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import Tensor

from mmrecur.apis.randomness import own_randomness
from mmrecur.apis.runner import load_config
from mmrecur.apis.swap.channels import set_channels
from mmrecur.apis.swap.fit import check_start
from mmrecur.apis.swap.freezing import freeze_what_is_trained
from mmrecur.apis.swap.names import find_backbone, signature
from mmrecur.apis.swap.stages import loss_notes, matching_indices, probe
from mmrecur.apis.swap.target import ARCHITECTURE, Host, Replaced, build, find_target, outputs, read_replaced
from mmrecur.apis.swap.weights import EXACT, Start, choose_start, pretrained, randomize_norms
from mmrecur.errors import ToolError
from mmrecur.models.backbones import Backbone

#: Options whose loss is worth a note, unless they have these values.
_USUAL = {'style': 'pytorch', 'attention': None, 'groups': 1, 'base_width': 64, 'stem': 'imagenet'}


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
        difference (float, optional): Largest relative difference of the features of both, with the
            checkpoint grafted or, where that is not at hand, a plain network's random weights; None if it is
            not known.
        is_checked (bool): Whether it was the checkpoint.
        errors (dict[str, float]): What the graft of the checkpoint says of its fit, see :class:`Report`.
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
    is_checked: bool = False
    errors: dict[str, float] = field(default_factory=dict)
    changes: list[tuple[str, Any, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """bool: Whether the graft is known to compute what the replaced backbone did."""
        return self.difference is not None and self.difference <= EXACT


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
    with own_randomness():
        return _plan(load_config(cfg) if isinstance(cfg, str) else cfg, name, init, at, load_from)


def _plan(base: Config, name: str | dict[str, Any], init: str, at: str | None, load_from: str | None) -> Swap:
    config = copy.deepcopy(base)
    host = find_target(config, at)
    replaced = read_replaced(host)
    family, fixed = find_backbone(name)
    args = _arguments(host, replaced, family, fixed)
    start = Start(None, 'model') if load_from else choose_start(init, replaced, args)
    swap = Swap(base, config, host, str(replaced), '', start)
    _check_whole_checkpoint(swap, init)
    image, maps = probe(replaced.module, args.get('in_channels', 3))

    def built(out_indices: tuple[int, ...]) -> Backbone:
        cfg = _new_config(family, {**args, 'out_indices': out_indices}, Start(None, 'random'))
        return build(cfg, host.scope, 'the new backbone')

    stages = None
    if 'out_indices' not in args:
        args['out_indices'], stages = matching_indices(built, maps, image)
    backbone = built(args['out_indices'])
    _check_sizes(backbone, maps, image)
    checked = check_start(start, replaced, host.scope, backbone, args, image)
    swap.difference, swap.is_checked, swap.errors = checked.difference, checked.by_file, checked.errors
    swap.notes += checked.notes
    freeze_what_is_trained(swap, args, fixed)
    new = _new_config(family, args, start)
    _replace(swap, new, backbone, maps)
    swap.new = f'{family.__name__}({_shown(new)})'
    swap.notes += loss_notes(replaced.module, backbone, [m.size(1) for m in maps], stages)
    _note_options(swap, replaced, family, new)
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
    if replaced.options.get('depth') is None or 'stem' in replaced.options and 'stem' not in known:
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
    whole = config.get('load_from') or (pretrained(model) or {}).get('checkpoint')
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


def _check_sizes(backbone: Backbone, old_maps: Sequence[Tensor], image: Tensor) -> None:
    randomize_norms(backbone, image)
    maps = outputs(backbone, image, 'the new backbone')
    old, new = ([tuple(m.shape[2:]) for m in group] for group in (old_maps, maps))
    if old != new:
        raise ToolError(
            f'on an image of {tuple(image.shape[2:])} the old backbone gives maps of {old}, the new one of '
            f'{new}: what reads them needs the same'
        )


def _replace(swap: Swap, new: ConfigDict, backbone: Backbone, old_maps: Sequence[Tensor]) -> None:
    """Put the backbone and what it needs into the config."""
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


def _note_options(swap: Swap, replaced: Replaced, family: type[Backbone], new: Mapping[str, Any]) -> None:
    known = signature(family)
    lost = {k: v for k, v in replaced.unknown.items() if k not in new}
    lost |= {
        key: replaced.options[key]
        for key, usual in _USUAL.items()
        if replaced.options.get(key, usual) != usual and key not in known
    }
    for key, value in lost.items():
        shown = value if not isinstance(value, list) else ', '.join(str(v.get('cfg', v)) for v in value)
        swap.notes.append(f'left out, the new backbone has no counterpart: {key}={shown}')
    if swap.start.kind != 'random' and (new.get('norm_cfg') or {}).get('requires_grad') is False:
        swap.notes.append('norm_cfg.requires_grad=False: norms that are new do not learn either')


def _load(swap: Swap, load_from: str) -> None:
    model, config = swap.host.model, swap.config
    if swap.host.is_nested or pretrained(model):
        # load_from is for the whole model, of which this is a part
        before = (pretrained(model) or {}).get('checkpoint')
        model.init_cfg = dict(type='Pretrained', checkpoint=load_from)
        swap.changes.append((f'{swap.host.path}.init_cfg', before, load_from))
    else:
        swap.changes.append(('load_from', config.get('load_from'), load_from))
        config.load_from = load_from
