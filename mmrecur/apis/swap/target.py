"""Find the part of a config whose backbone is swapped, and read the options of that backbone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from torch import nn

from mmrecur.apis.swap.features import build
from mmrecur.errors import ToolError
from mmrecur.models.backbones import Backbone

#: Classes of mmdet and mmpretrain whose options and weights can be carried over, by name.
PLAIN = (
    'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'SEResNet', 'SEResNeXt', 'MobileNetV2', 'ResNet_CIFAR',
    'DetectoRS_ResNet', 'DetectoRS_ResNeXt',
)  # fmt: skip

#: Options that any backbone may have, and that the new backbone keeps if it has them too.
COMMON = ('in_channels', 'frozen_stages', 'norm_cfg', 'norm_eval', 'with_cp')
#: Options that describe the architecture of a plain network.
ARCHITECTURE = (
    'depth', 'groups', 'base_width', 'base_channels', 'deep_stem', 'avg_down', 'style', 'strides',
    'dilations', 'attention', 'stem',
)  # fmt: skip
#: Options that are kept from any subclass of the libraries' ResNets, such as ResNeSt.
_OF_EVERY_RESNET = ('depth', 'style', 'strides', 'dilations', 'out_indices')
#: Values that need no counterpart in the new backbone, by option.
_NEUTRAL = {
    'style': 'pytorch', 'conv_cfg': None, 'dcn': None, 'plugins': None, 'sac': None, 'drop_path_rate': 0.0,
    'act_cfg': dict(type='ReLU'),
}  # fmt: skip
#: Options that are translated elsewhere, or that only refine an option which is reported.
_TRANSLATED = {
    'type', 'num_stages', 'width_per_group', 'se_ratio', 'stage_with_dcn', 'stage_with_sac', 'stem_channels',
    'init_cfg', 'pretrained', 'widen_factor', 'output_img', 'expansion',
}  # fmt: skip
_MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Target:
    """The part of a config whose backbone is swapped: the model, or a detector inside the model.

    Attributes:
        path (tuple[str, ...]): Keys that lead to the part, such as ``('model', 'detector')``.
        model (dict): Config of the part.
        scope (str, optional): Default scope of the config.
        data_preprocessor (dict, optional): Data preprocessor for the part if it has none of its own.
    """

    path: tuple[str, ...]
    model: dict[str, Any]
    scope: str | None
    data_preprocessor: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """str: The path with dots, such as ``'model.detector'``."""
        return '.'.join(self.path)

    @property
    def backbone(self) -> dict[str, Any]:
        """dict: Config of the backbone."""
        return self.model['backbone']

    @property
    def is_nested(self) -> bool:
        """bool: Whether the target is a part of the model rather than the whole model."""
        return len(self.path) > 1

    @property
    def is_classifier(self) -> bool:
        """bool: Whether the target is an ``ImageClassifier`` of mmpretrain."""
        return str(self.model.get('type')).rpartition('.')[2] == 'ImageClassifier'

    def build(self) -> nn.Module:
        """Build the target with random weights.

        Raises:
            ToolError: If the target cannot be built.
        """
        cfg = dict(self.model)
        if self.data_preprocessor is not None:
            cfg.setdefault('data_preprocessor', self.data_preprocessor)
        return build(cfg, self.scope, self.name)


def find_target(cfg: Config, at: str | None = None) -> Target:
    """Find the part of a config whose backbone is swapped.

    Args:
        cfg (Config): A config with a model.
        at (str, optional): Dotted path of the part, such as ``'model.detector'``; needed only if several
            parts have a backbone. Defaults to None.

    Returns:
        Target: The part.

    Raises:
        ToolError: If no part has a backbone, or if several have one and ``at`` selects none of them.
    """
    if not isinstance(cfg.get('model'), dict):
        raise ToolError('the config has no model')
    model = cfg.model
    found = dict(_parts_with_backbone(model, ('model',)))
    names = {'.'.join(path): path for path in found}
    if at is not None and at not in names:
        raise ToolError(f'at={at!r}, allowed (parts with a backbone): {", ".join(names) or "none"}')
    if not found:
        kind = model.get('type')
        if isinstance(model.get('backbone'), (list, tuple)):
            raise ToolError(f'{kind} has a list of backbones, and a single one of them cannot be swapped')
        raise ToolError(f'the model, {kind}, has no part with a backbone')
    if at is None and len(found) > 1 and 'model' not in names:
        raise ToolError(f'several parts have a backbone; choose one with at: {", ".join(names)}')
    path = names[at or ('model' if 'model' in names else next(iter(names)))]
    nested = len(path) > 1
    preprocessor = _image_preprocessor(model) if nested else cfg.get('data_preprocessor')
    return Target(path, found[path], cfg.get('default_scope'), preprocessor)


def _parts_with_backbone(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict]]:
    if isinstance(node, dict):
        if isinstance(node.get('backbone'), dict):
            yield path, node
        for key, value in node.items():
            if key != 'backbone':
                yield from _parts_with_backbone(value, (*path, key))


def _image_preprocessor(model: dict[str, Any]) -> dict[str, Any] | None:
    """Return a preprocessor for the detector in a tracker: the tracker's own, applied to single images."""
    outer = model.get('data_preprocessor') or {}
    if str(outer.get('type')).rpartition('.')[2] != 'TrackDataPreprocessor':
        return None
    kept = {k: v for k, v in outer.items() if k not in ('type', 'use_det_processor', 'batch_augments')}
    return dict(type='mmdet.DetDataPreprocessor', **kept)


@dataclass(frozen=True)
class Replaced:
    """The backbone that is replaced.

    Attributes:
        cfg (dict): Its config.
        module (nn.Module): The backbone with random weights.
        kind (str): Name of its class.
        is_plain (bool): Whether it is one of :data:`PLAIN`, so that its weights can be grafted.
        options (dict): Its options under the argument names of this package's backbones, defaults
            included.
        unknown (dict): Options from its config that have no counterpart in this package.
    """

    cfg: dict[str, Any]
    module: nn.Module
    kind: str
    is_plain: bool
    options: dict[str, Any]
    unknown: dict[str, Any]

    def __str__(self) -> str:
        usual = {'depth': None, 'groups': 1, 'base_width': 64, 'deep_stem': False, 'style': 'pytorch'}
        args = {key: self.options[key] for key in usual if self.options.get(key, usual[key]) != usual[key]}
        shown = ', '.join(f'{key}={value!r}' for key, value in args.items())
        return f'{self.kind}({shown})' if shown else self.kind


def read_replaced(target: Target) -> Replaced:
    """Build the backbone of a target and read its options, including defaults of its class.

    Args:
        target (Target): See :func:`find_target`.

    Returns:
        Replaced: The backbone and its options.

    Raises:
        ToolError: If the backbone cannot be built, or if no backbone of this package can replace it.
    """
    cfg = dict(target.backbone)
    module = build(cfg, target.scope, "the base's backbone")
    kind = type(module).__name__
    _refuse_other_outputs(module, kind, target)
    if isinstance(module, Backbone):
        known = {key for key in (*COMMON, *ARCHITECTURE, 'out_indices') if hasattr(module, key)}
        options = {key: cfg.get(key, getattr(module, key)) for key in known}
        plugins = {'plugins': cfg['plugins']} if cfg.get('plugins') else {}
        return Replaced(cfg, module, kind, False, options, plugins)
    is_plain = kind in PLAIN and type(module).__module__.split('.')[0] in ('mmdet', 'mmpretrain')
    options = _plain_options(module, cfg) if is_plain else _other_options(module, cfg)
    options = {name: value for name, value in options.items() if value is not _MISSING}
    options.setdefault('in_channels', 3)
    if not re.search('BN|GN', str(options.get('norm_cfg'))):
        options.pop('norm_cfg', None)  # the layer norm of a transformer, for example
    for name, full in (('strides', (1, 2, 2, 2)), ('dilations', (1, 1, 1, 1))):
        if name in options:  # the replaced network may have fewer stages
            options[name] = (*options[name], *full[len(options[name]) :])
    unknown = _unknown_options(module, cfg, options) if is_plain else {}
    return Replaced(cfg, module, kind, is_plain, options, unknown)


def _plain_options(module: nn.Module, cfg: dict[str, Any]) -> dict[str, Any]:
    options = {name: _option(module, cfg, name) for name in (*COMMON, *ARCHITECTURE, 'out_indices')}
    if type(module).__name__ == 'ResNet_CIFAR':
        options['stem'] = 'cifar'
    _translate_expansion(options, cfg)
    if hasattr(module, 'width_per_group'):
        options['base_width'] = _option(module, cfg, 'width_per_group')
    if hasattr(module, 'widen_factor'):
        options['width_mult'] = module.widen_factor
    if hasattr(module, 'se_ratio'):
        options['attention'] = dict(type='se', reduction=module.se_ratio, bias=True)
    return options


def _other_options(module: nn.Module, cfg: dict[str, Any]) -> dict[str, Any]:
    names: tuple[str, ...] = COMMON
    if _is_resnet(module) and _option(module, cfg, 'depth') is not _MISSING:
        names = (*COMMON, *_OF_EVERY_RESNET)
    return {name: _option(module, cfg, name) for name in names}


def _unknown_options(module: nn.Module, cfg: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    unknown = {
        key: value
        for key, value in cfg.items()
        if key not in options and key not in _TRANSLATED and _NEUTRAL.get(key, ...) != value
    }
    stem = getattr(module, 'stem_channels', None)
    if stem not in (None, options.get('base_channels')):
        unknown['stem_channels'] = stem
    return unknown


def _is_resnet(module: nn.Module) -> bool:
    """Return whether a module is a subclass of the ResNet of mmdet or mmpretrain."""
    bases = [c for c in type(module).__mro__ if c.__name__ == 'ResNet']
    return any(c.__module__.split('.')[0] in ('mmdet', 'mmpretrain') for c in bases)


def _translate_expansion(options: dict[str, Any], cfg: dict[str, Any]) -> None:
    """Translate the ``expansion`` of mmpretrain's Wide ResNets into this package's ``base_width``."""
    if cfg.get('expansion') is None or not isinstance(options.get('base_channels'), int):
        return
    inner, outer = options['base_channels'], options['base_channels'] * cfg['expansion']
    expansion = 4 if options.get('depth', 0) >= 50 else 1
    if outer != inner * expansion:
        options['base_channels'] = outer // expansion
        options['base_width'] = 64 * inner // options['base_channels']


def _refuse_other_outputs(module: nn.Module, kind: str, target: Target) -> None:
    """Raise if the backbone returns anything besides one feature map a stage and image."""
    if kind == 'TridentResNet':
        raise ToolError(
            f'in training, TridentResNet returns the maps of {module.num_branch} branches as additional '
            f'images, which {target.model.get("type")} expects; a backbone of this package returns one map '
            'for each image. Allowed: the same detector on a ResNet, such as '
            'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'
        )
    if kind.startswith('DetectoRS') and getattr(module, 'output_img', False):
        neck = target.model.get('neck') or {}
        raise ToolError(
            f'{kind} returns the image itself before its maps (output_img=True), because the neck, '
            f'{neck.get("type")}, runs further backbones on that image; no backbone of this package returns '
            'it. Allowed: a detector with another neck, such as '
            'mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py'
        )


def _option(module: nn.Module, cfg: dict[str, Any], name: str) -> Any:
    """Return the value of an option: from the config, implied by the class (ResNet-D), or its default."""
    if name in cfg:
        return cfg[name]
    if name in ('deep_stem', 'avg_down') and hasattr(module, name):
        return getattr(module, name)
    for cls in type(module).__mro__:  # a class may pass **kwargs on to its bases
        parameter = inspect.signature(cls.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not _MISSING:
            return parameter.default
    return _MISSING
