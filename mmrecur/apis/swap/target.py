"""What is known of the model whose backbone is replaced."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmrecur.apis.specs import build_model
from mmrecur.errors import ToolError
from mmrecur.models.backbones import Backbone

#: Plain networks whose options and weights the grafts know, by class name.
PLAIN = (
    'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'SEResNet', 'SEResNeXt', 'MobileNetV2', 'ResNet_CIFAR',
    'DetectoRS_ResNet', 'DetectoRS_ResNeXt',
)  # fmt: skip

#: Options that both sides may have; a backbone of this package gets those that it knows too.
COMMON = ('in_channels', 'frozen_stages', 'norm_cfg', 'norm_eval', 'with_cp')
ARCHITECTURE = (
    'depth', 'groups', 'base_width', 'base_channels', 'deep_stem', 'avg_down', 'style', 'strides',
    'dilations', 'attention', 'stem',
)  # fmt: skip
#: What other networks made of ResNets have in common with them.
_OF_EVERY_RESNET = ('depth', 'style', 'strides', 'dilations', 'out_indices')
#: Options that pretrained weights depend on and a backbone here may lack: usual value, and why.
ALTERS_WEIGHTS = {
    'style': ('pytorch', 'Its weights are for a stride on the 1x1 convolutions'),
    'conv_cfg': (None, 'Its weights are for another kind of convolution'),
}
#: Values of options that nothing has to stand for.
_NEUTRAL = {
    'style': 'pytorch', 'conv_cfg': None, 'dcn': None, 'plugins': None, 'sac': None, 'drop_path_rate': 0.0,
    'act_cfg': dict(type='ReLU'),
}  # fmt: skip
#: Options that say the same as others, or belong to one of those that are reported.
_TRANSLATED = {
    'type', 'num_stages', 'width_per_group', 'se_ratio', 'stage_with_dcn', 'stage_with_sac', 'stem_channels',
    'init_cfg', 'pretrained', 'widen_factor', 'output_img',
    'expansion',
}  # fmt: skip


@dataclass
class Host:
    """The part of a config that has the backbone: the model, or a detector within it.

    Attributes:
        path (str): Dotted place in the config, such as ``'model'`` or ``'model.detector'``.
        model (dict): Its config, a part of ``cfg``.
        scope (str, optional): Default scope of the config.
        data_preprocessor (dict, optional): The config's, for a model that does not have its own.
    """

    path: str
    model: dict[str, Any]
    scope: str | None
    data_preprocessor: dict[str, Any] | None = None

    @property
    def backbone(self) -> dict[str, Any]:
        """dict: Config of the backbone."""
        return self.model['backbone']

    def build(self) -> nn.Module:
        """Build it with random weights.

        Raises:
            ToolError: If it cannot be built.
        """
        cfg = dict(self.model)
        if self.data_preprocessor is not None:
            cfg.setdefault('data_preprocessor', self.data_preprocessor)
        return build(cfg, self.scope, self.path)

    @property
    def is_nested(self) -> bool:
        """bool: Whether the model has it as a part."""
        return self.path != 'model'

    @property
    def is_classifier(self) -> bool:
        """bool: Whether it is mmpretrain's image classifier."""
        return str(self.model.get('type')).rpartition('.')[2] == 'ImageClassifier'


def _hosts(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get('backbone'), dict):
            yield path, node
        for key, value in node.items():
            if key != 'backbone':
                yield from _hosts(value, f'{path}.{key}')


def find_target(cfg: Config, at: str | None = None) -> Host:
    """Find the part of a model that has a backbone.

    Args:
        cfg (Config): A config with a model.
        at (str, optional): Which one, if there are several, such as ``'model.detector'``.
            Defaults to None.

    Returns:
        Host: The part.

    Raises:
        ToolError: If there is none, or several and ``at`` names none of them.
    """
    if not isinstance(cfg.get('model'), dict):
        raise ToolError('the config has no model')
    model = cfg.model
    found = dict(_hosts(model, 'model'))
    if at is not None and at not in found:
        raise ToolError(f'at={at!r}; allowed, since they have a backbone: {", ".join(found) or "nothing"}')
    if not found:
        kind = model.get('type')
        if isinstance(model.get('backbone'), (list, tuple)):
            raise ToolError(f'{kind} has a list of backbones: none of them can be replaced alone')
        raise ToolError(f'the model, {kind}, has no part with a backbone')
    if at is None and len(found) > 1 and 'model' not in found:
        raise ToolError(f'several parts have a backbone; choose one with at: {", ".join(found)}')
    path = at or ('model' if 'model' in found else next(iter(found)))
    preprocessor = cfg.get('data_preprocessor') if path == 'model' else _of_images(model)
    return Host(path, found[path], cfg.get('default_scope'), preprocessor)


def _of_images(model: dict[str, Any]) -> dict[str, Any] | None:
    """What a tracker's preprocessor does to videos, for the images of the detector within."""
    outer = model.get('data_preprocessor') or {}
    if str(outer.get('type')).rpartition('.')[2] != 'TrackDataPreprocessor':
        return None
    kept = {k: v for k, v in outer.items() if k not in ('type', 'use_det_processor', 'batch_augments')}
    return dict(type='mmdet.DetDataPreprocessor', **kept)


def build(cfg: dict[str, Any], scope: str | None, what: str) -> nn.Module:
    """Build a module with random weights and say what went wrong if it cannot be.

    Args:
        cfg (dict): Its config.
        scope (str, optional): Default scope of its types.
        what (str): What it is, for the message.

    Returns:
        nn.Module: The module.

    Raises:
        ToolError: If it cannot be built.
    """
    try:
        return build_model(cfg, scope)
    except ToolError as error:
        raise ToolError(f'{what}: {error}') from error
    except Exception as error:  # libraries assert, index and import in their constructors
        raise ToolError(f'{what} cannot be built: {type(error).__name__}: {error}') from error


@torch.no_grad()
def outputs(backbone: nn.Module, image: Tensor, what: str) -> tuple[Tensor, ...]:
    """Feature maps of a backbone in evaluation mode.

    Args:
        backbone (nn.Module): The backbone.
        image (Tensor): Images, shape (N, C, H, W).
        what (str): What it is, for the message.

    Returns:
        tuple[Tensor]: Its outputs, shapes (N, C_i, H_i, W_i).

    Raises:
        ToolError: If it fails or gives something else.
    """
    backbone.eval()
    try:
        maps = backbone(image)
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ToolError(f'{what} does not run on an image alone ({reason})') from error
    maps = (maps,) if isinstance(maps, Tensor) else maps
    if not isinstance(maps, (tuple, list)) or not all(isinstance(m, Tensor) and m.dim() == 4 for m in maps):
        raise ToolError(f'{what} gives no feature maps of shape (N, C, H, W), which a CNN would replace')
    return tuple(maps)


@dataclass
class Replaced:
    """The backbone to be replaced.

    Attributes:
        cfg (dict): Its config.
        module (nn.Module): The backbone with random weights.
        kind (str): Its class.
        is_plain (bool): Whether the options and weights of its class are known to this package.
        options (dict): What it is in the words of this package's backbones.
        unknown (dict): Options it was given that have no counterpart here.
    """

    cfg: dict[str, Any]
    module: nn.Module
    kind: str
    is_plain: bool
    options: dict[str, Any]
    unknown: dict[str, Any]

    def __str__(self) -> str:
        shown = {'depth': None, 'groups': 1, 'base_width': 64, 'deep_stem': False, 'style': 'pytorch'}
        args = {key: self.options[key] for key in shown if self.options.get(key, shown[key]) != shown[key]}
        shown = ', '.join(f'{key}={value!r}' for key, value in args.items())
        return f'{self.kind}({shown})' if shown else self.kind


def read_replaced(host: Host) -> Replaced:
    """Build the backbone of a host and read its options, defaults of its class among them.

    Args:
        host (Host): See :func:`find_target`.

    Returns:
        Replaced: What is known of it.

    Raises:
        ToolError: If it cannot be built.
    """
    cfg = dict(host.backbone)
    module = build(cfg, host.scope, "the base's backbone")
    kind = type(module).__name__
    library = type(module).__module__.split('.')[0]
    ours = isinstance(module, Backbone)
    is_plain = kind in PLAIN and library in ('mmdet', 'mmpretrain')
    _refuse_special(module, kind, host)
    if ours:
        known = {key for key in (*COMMON, *ARCHITECTURE, 'out_indices') if hasattr(module, key)}
        options = {key: cfg.get(key, getattr(module, key)) for key in known}
        return Replaced(cfg, module, kind, False, options, {})
    names = (*COMMON, *ARCHITECTURE, 'out_indices') if is_plain else COMMON
    if not is_plain and _is_resnet(module) and _option(module, cfg, 'depth') is not inspect.Parameter.empty:
        names = (*COMMON, *_OF_EVERY_RESNET)
    options = {name: _option(module, cfg, name) for name in names}
    if kind == 'ResNet_CIFAR':
        options['stem'] = 'cifar'
    if is_plain:
        _translate_expansion(options, module, cfg)
        if hasattr(module, 'width_per_group'):
            options['base_width'] = _option(module, cfg, 'width_per_group')
        if hasattr(module, 'widen_factor'):
            options['width_mult'] = module.widen_factor
        if hasattr(module, 'se_ratio'):
            options['attention'] = dict(type='se', reduction=module.se_ratio, bias=True)
    options = {name: value for name, value in options.items() if value is not inspect.Parameter.empty}
    options.setdefault('in_channels', 3)
    if not re.search('BN|GN', str(options.get('norm_cfg'))):
        options.pop('norm_cfg', None)  # of a transformer, say
    for name, full in (('strides', (1, 2, 2, 2)), ('dilations', (1, 1, 1, 1))):
        if name in options:  # of a network with fewer stages
            options[name] = (*options[name], *full[len(options[name]) :])
    unknown = {
        key: value
        for key, value in cfg.items()
        if is_plain and key not in options and key not in _TRANSLATED and _NEUTRAL.get(key, ...) != value
    }
    stem = getattr(module, 'stem_channels', None)
    if is_plain and stem not in (None, options.get('base_channels')):
        unknown['stem_channels'] = stem
    return Replaced(cfg, module, kind, is_plain, options, unknown)


def _is_resnet(module: nn.Module) -> bool:
    """Whether a module is made of a ResNet of mmdet or mmpretrain."""
    bases = [c for c in type(module).__mro__ if c.__name__ == 'ResNet']
    return any(c.__module__.split('.')[0] in ('mmdet', 'mmpretrain') for c in bases)


def _translate_expansion(options: dict[str, Any], module: nn.Module, cfg: dict[str, Any]) -> None:
    """mmpretrain's Wide ResNets are wider inside since they expand less: here they have a wider base."""
    if cfg.get('expansion') is None or not isinstance(options.get('base_channels'), int):
        return
    inner, outer = options['base_channels'], options['base_channels'] * cfg['expansion']
    expansion = 4 if options.get('depth', 0) >= 50 else 1
    if outer != inner * expansion:
        options['base_channels'] = outer // expansion
        options['base_width'] = 64 * inner // options['base_channels']


def _refuse_special(module: nn.Module, kind: str, host: Host) -> None:
    """Say why backbones that give more than maps cannot be replaced."""
    if kind == 'TridentResNet':
        raise ToolError(
            f'TridentResNet gives in training the maps of {module.num_branch} branches as if of more images, '
            f'which {host.model.get("type")} expects; a backbone of this package gives one map of an image. '
            'Allowed: the same detector on a ResNet, such as '
            'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'
        )
    if kind.startswith('DetectoRS') and getattr(module, 'output_img', False):
        neck = host.model.get('neck') or {}
        raise ToolError(
            f'{kind} gives the image itself before its maps (output_img=True), since the neck, '
            f'{neck.get("type")}, sends it through further backbones that read the maps too; no backbone of '
            'this package does that. Allowed: a detector with another neck, such as '
            'mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py'
        )


def _option(module: nn.Module, cfg: dict[str, Any], name: str) -> Any:
    """Value of an argument: given, implied by the class (ResNet-D), or its default."""
    if name in cfg:
        return cfg[name]
    if name in ('deep_stem', 'avg_down') and hasattr(module, name):
        return getattr(module, name)
    for cls in type(module).__mro__:  # **kwargs lead to the bases
        parameter = inspect.signature(cls.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return inspect.Parameter.empty
