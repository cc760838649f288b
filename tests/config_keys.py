"""Find the unused keys of a config.

MMEngine raises for an unknown argument only if the class takes no ``**kwargs``, and the runner
ignores top-level keys that it does not know, so a misspelt key can go unnoticed.
:func:`unused_keys` walks a whole config and compares each dict with what reads it: the signature of
the class it names (and of the bases that ``**kwargs`` reach) or, for a dict without a type, what
its place allows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from typing import Any

import mmcv.ops
import mmdet.registry
import mmengine.registry
import mmpretrain.registry
import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.hub import get_config
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed
from mmengine.utils import import_modules_from_strings
from mmengine.utils.dl_utils import set_multi_processing

import mmrecur.registry

#: Read by ``Config`` itself, by ``tools/test.py`` and by the runner from the config as a whole.
TOOL_KEYS = {'custom_imports', 'tta_model', 'tta_pipeline', 'sync_bn'}
#: Keys that registries, the runner and builders remove before they call a class.
BUILDER_KEYS = {'type', '_scope_', 'priority', 'constructor', 'paramwise_cfg'}
BUILDER_KEYS |= {'convert_to_iter_based'}
HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}
#: Keys that MMEngine's optimizer constructor reads.
PARAMWISE_KEYS = {'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult'}
PARAMWISE_KEYS |= {'dcn_offset_lr_mult', 'flat_decay_mult', 'bypass_duplicate'}
#: The library's config that shows what a detector's train_cfg and test_cfg may hold.
DETECTORS = {
    'FasterRCNN': 'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'MaskRCNN': 'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'RetinaNet': 'mmdet::_base_/models/retinanet_r50_fpn.py',
    'SingleStageDetector': 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
}

library_config = cache(get_config)


def arguments(function: Callable) -> set[str]:
    """Return the names of the arguments of a function, or of a class with its bases."""
    if not inspect.isclass(function):
        return _signature(function)[0]
    names: set[str] = set()
    for cls in function.__mro__:
        if '__init__' not in vars(cls):
            continue
        own, passes_on = _signature(cls.__init__)
        names |= own
        if not passes_on:
            break
    return names - {'self'}


def _signature(function: Callable) -> tuple[set[str], bool]:
    kinds = inspect.Parameter
    found = inspect.signature(function).parameters.values()
    names = {p.name for p in found if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    return names, any(p.kind is kinds.VAR_KEYWORD for p in found)


@cache
def named(name: str) -> tuple[Callable, ...]:
    """Return everything that a ``type`` may name: entries of registries or an op of MMCV."""
    scope, dot, _ = name.partition('.')
    modules = (mmengine.registry, mmdet.registry, mmpretrain.registry, mmrecur.registry)
    registries = [v for m in modules for v in vars(m).values() if isinstance(v, Registry)]
    if dot:
        registries = [registry for registry in registries if registry.scope == scope]
    # a package may have no module yet for some of its registries
    registries = [r for r in registries if all(map(find_spec, r._locations))]
    found = [registry.get(name) for registry in registries] + [getattr(mmcv.ops, name, None)]
    return tuple({id(item): item for item in found if item is not None}.values())


def dicts(value: Any, place: str = '') -> Iterator[tuple[str, dict]]:
    """Yield every dict of a config with its place, such as ``model.neck``, without list indices."""
    if isinstance(value, dict):
        yield place, value
        for key, item in value.items():
            yield from dicts(item, f'{place}.{key}' if place else key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts(item, place)


def places(cfg: Config) -> list[tuple[str, set[str]]]:
    """Return the keys that dicts without a type may have, by patterns of places."""
    known = [
        ('*_dataloader', arguments(torch.utils.data.DataLoader)),
        ('*_dataloader.*dataset.data_prefix', {'img', 'img_path', 'seg_map_path'}),
        ('*_dataloader.*dataset.filter_cfg', {'filter_empty_gt', 'min_size'}),
        ('*metainfo', {'classes', 'palette'}),
        ('auto_scale_lr', {'enable', 'base_batch_size'}),
        ('custom_imports', arguments(import_modules_from_strings)),
        ('data_preprocessor', _of('ClsDataPreprocessor')),
        ('default_hooks', HOOKS | {'visualization'}),
        ('env_cfg', {'cudnn_benchmark', 'mp_cfg', 'dist_cfg'}),
        ('env_cfg.dist_cfg', arguments(init_dist) | {'timeout'}),
        ('env_cfg.mp_cfg', arguments(set_multi_processing)),
        ('optim_wrapper', _of('OptimWrapper')),
        ('optim_wrapper.clip_grad', arguments(torch.nn.utils.clip_grad_norm_)),
        ('optim_wrapper.paramwise_cfg', PARAMWISE_KEYS),
        # names of parameters: whether there are such, only the model knows
        ('optim_wrapper.paramwise_cfg.custom_keys', set(_custom_keys(cfg))),
        ('optim_wrapper.paramwise_cfg.custom_keys.*', {'lr_mult', 'decay_mult'}),
        ('randomness', arguments(set_random_seed)),
        ('model.backbone.plugins', {'cfg', 'position', 'stages'}),
        ('train_cfg', arguments(EpochBasedTrainLoop) | {'by_epoch'}),
        ('val_cfg', _of('ValLoop')),
        ('test_cfg', _of('TestLoop')),
    ]
    if cfg.model.type not in DETECTORS:
        return [*known, ('model.train_cfg', {'augments'})]
    library = library_config(DETECTORS[cfg.model.type]).model
    for part in ('train_cfg', 'test_cfg'):
        known += [(place, set(keys)) for place, keys in dicts(library[part], f'model.{part}')]
    return known


def _custom_keys(cfg: Config) -> dict:
    return (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys', {})


def _of(name: str) -> set[str]:
    return set().union(*(arguments(item) for item in named(name)))


def _holds(value: Any, wanted: Any) -> bool:
    if value == wanted and type(value) is type(wanted):
        return True
    values = value.values() if isinstance(value, dict) else value
    return isinstance(value, (dict, list, tuple)) and any(_holds(v, wanted) for v in values)


def _plain(value: Any) -> Any:
    """Return the value without the scopes that ``Config`` adds to bases from other packages."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != '_scope_'}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def unused_keys(cfg: Config) -> list[str]:
    """Return the keys of a config that nothing reads.

    A top-level key is read by the runner or a tool, or is a variable of the config files
    (``data_root``) whose value stands somewhere in what these read.

    Args:
        cfg (Config): A whole config.

    Returns:
        list[str]: Their places, such as ``model.neck.out_chanels``, with the class in brackets.
    """
    runner_keys = (arguments(Runner) - {'cfg'}) | TOOL_KEYS
    read = {key: value for key, value in cfg.items() if key in runner_keys}
    rest = {key: _plain(value) for key, value in cfg.items() if key not in read}
    unused = [key for key, value in rest.items() if not _holds(_plain(read), value)]
    known = places(cfg)
    for place, value in dicts(read):
        if not place:
            continue
        keys = set(value) - BUILDER_KEYS
        if isinstance(value.get('type'), str):
            candidates = [keys - arguments(item) for item in named(value['type'])]
        else:
            candidates = [keys - allowed for where, allowed in known if fnmatchcase(place, where)]
        extra = min(candidates, key=len, default=keys)
        unused += [f'{place}.{key} ({value.get("type", "dict")})' for key in sorted(extra)]
    return unused
