"""Weights of a plain pretrained network grafted into a backbone of this package."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.grafts.hints import style_note, suggest_options
from mmrecur.checkpoint.grafts.input_statistics import Images, check_images
from mmrecur.checkpoint.grafts.resnet_names import plain_names
from mmrecur.checkpoint.transfer import Report, Transfer
from mmrecur.checkpoint.unwrap import read_weights
from mmrecur.errors import TransferError

#: A rule fills a :class:`GraftTransfer` for one class of backbones.
Rule = Callable[['GraftTransfer'], None]
AnyRule = TypeVar('AnyRule', bound=Callable[..., None])
_RULES: dict[type[nn.Module], Rule] = {}


def register_graft(backbone: type[nn.Module]) -> Callable[[AnyRule], AnyRule]:
    """Register the decorated function as the rule that grafts plain networks into a backbone.

    Args:
        backbone (type): Class of the backbone. Subclasses without a rule of their own use this one.

    Returns:
        Callable: Decorator that returns the rule unchanged.
    """

    def decorate(rule: AnyRule) -> AnyRule:
        _RULES[backbone] = rule
        return rule

    return decorate


def _rule_for(backbone: nn.Module) -> Rule:
    for cls in type(backbone).__mro__:
        if cls in _RULES:
            return _RULES[cls]
    allowed = ', '.join(sorted(cls.__name__ for cls in _RULES))
    raise ValueError(f'backbone of type {type(backbone).__name__}, allowed: {allowed}')


def graft(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    strict: bool = True,
    prefix: str | None = None,
    ema: bool = True,
    *,
    images: Images | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Turn a plain network's checkpoint into one for a model with a backbone of this package.

    The new model computes the same as the plain one where this is possible. An RLA network always does,
    because its blocks read the recurrent state with weights that start at zero. Other families are fitted;
    the report then holds the relative error of each fit.

    Args:
        state_dict (Mapping): Checkpoint of a plain ResNet, ResNeXt, SE-, ECA- or CBAM-ResNet, ResNet-D or
            MobileNetV2 in the layout of torchvision, timm, mmpretrain or mmdet, or of a whole classifier
            or detector. For the accepted containers see :func:`mmrecur.checkpoint.unwrap.read_weights`.
        model (nn.Module): A backbone of this package, or a classifier or detector with one as
            ``backbone``. It is not changed.
        strict (bool): Raise if a key is not explained. Defaults to True.
        prefix (str, optional): Read only the keys that start with it, such as ``'teacher.'``, and remove
            it from them. Defaults to None.
        ema (bool): Prefer the moving average of the weights if the checkpoint holds both. Defaults to
            True.
        images (Tensor or Sequence[Tensor], optional): Images, normalised as for the plain network, shape (N,
            C, H, W), or several batches of different sizes. Weights that several layers share are then
            fitted to the outputs of these layers instead of their weights; 64 images are enough. Exact
            grafts do not need them. Defaults to None.

    Returns:
        tuple[dict[str, Tensor], Report]: A state dict for ``model.load_state_dict`` and the report on every
        key.

    Raises:
        TypeError: If ``images`` are not tensors of floating-point numbers.
        ValueError: If no rule is registered for the backbone, the model is in its inference form, or
            ``images`` have the wrong shape.
        TransferError: If nothing fits or, with ``strict``, if any key or shape does not. The message
            suggests options of the backbone that would fit, if they are known.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RLAResNet
        >>> model = RLAResNet(50)
        >>> state, report = graft(torch.load('resnet50.pth'), model)  # doctest: +SKIP
        >>> model.load_state_dict(state)  # doctest: +SKIP
    """
    rule = _rule_for(getattr(model, 'backbone', model))
    source, notes = read_weights(state_dict, prefix, ema)
    transfer = GraftTransfer(source, model, images)
    transfer.report.notes += [*notes, *style_note(state_dict, transfer)]
    try:
        rule(transfer)
        transfer.copy_other_parts()
        return transfer.finish(strict)
    except TransferError as error:
        raise TransferError(f'{error}{suggest_options(transfer)}') from error


class GraftTransfer(Transfer):
    """A transfer from a plain network, which graft rules fill.

    Args:
        source (Mapping[str, Tensor]): The plain network's tensors by name.
        model (nn.Module): The model to fill.
        images (Tensor or Sequence[Tensor], optional): Images to fit to, shape (N, C, H, W). Defaults to
            None.

    Attributes:
        plain (dict[str, str]): Key in the source by the parameter's common name, see :func:`plain_names`.
        images (list[Tensor], optional): The batches of images.
        reordered (set[str]): Source keys of tensors whose channels have been reordered.
    """

    def __init__(self, source: Mapping[str, Tensor], model: nn.Module, images: Images | None = None) -> None:
        super().__init__(source, model)
        # reorder() replaces tensors; parameters of a module would record gradients
        self.source: dict[str, Tensor] = {key: tensor.detach() for key, tensor in source.items()}
        self.images = None if images is None else check_images(images, self.backbone.in_channels)
        self.reordered: set[str] = set()
        self.plain = plain_names(source)
        self._parts = {key.split('.', 1)[0] for key in source}
        self._make_room_for_pools()

    def _make_room_for_pools(self) -> None:
        """Shift the layers of shortcuts in ``plain`` where only the model has a pooling layer before them.

        mmpretrain's ResNet-D omits this layer where its stride is 1.
        """
        ours = set(self.backbone_keys())
        for name in [name for name in self.plain if name.endswith('downsample.0.weight')]:
            shortcut = name.removesuffix('0.weight')
            if name not in ours and f'{shortcut}2.weight' in ours:
                moved = {key for key in self.plain if key.startswith(shortcut)}
                renamed = {key: self.plain.pop(key) for key in moved}
                for key, value in renamed.items():
                    index, leaf = key[len(shortcut) :].split('.', 1)
                    self.plain[f'{shortcut}{int(index) + 1}.{leaf}'] = value

    def backbone_keys(self) -> list[str]:
        """Return the names of the backbone's tensors, without the prefix and in order."""
        return [key[len(self.prefix) :] for key in self.target if key.startswith(self.prefix)]

    def backbone_state(self) -> dict[str, Tensor]:
        """Return the backbone's state dict, with the values filled so far and its own elsewhere."""
        return {
            name: self._tensors.get(self.prefix + name, self.target[self.prefix + name])
            for name in self.backbone_keys()
        }

    def reorder(self, key: str, tensor: Tensor) -> None:
        """Replace a tensor of the source by itself with its channels in another order."""
        self.source[key] = tensor
        self.reordered.add(key)

    def copy(self, target: str, source: str) -> None:
        """See :meth:`Transfer.copy`. A tensor in another order counts as transformed."""
        if source in self.reordered:
            self.transform(target, [source], self.source[source], 'inner channels reordered')
        else:
            super().copy(target, source)

    def take(self, name: str) -> None:
        """Copy the plain tensor of the same common name; a missing counter keeps its initial value.

        Args:
            name (str): A name from :meth:`backbone_keys`.
        """
        target = self.prefix + name
        if name in self.plain:
            key = self.plain[name]
            tensor, wanted = self.source[key], self.target[target].shape
            if tensor.shape != wanted and tensor.squeeze().shape == wanted:
                self.transform(target, [key], tensor.reshape(wanted), 'a 1x1 convolution as a matrix')
            else:
                self.copy(target, key)
        elif name.endswith('num_batches_tracked'):
            self.leave(target, 'a counter that old checkpoints lack')

    def zero(self, target: str, how: str) -> None:
        """Fill a tensor that the plain network lacks with zeros.

        Args:
            target (str): Key in the model.
            how (str): Explanation for the report.
        """
        self.transform(target, [], torch.zeros_like(self.target[target]), how)

    def start_attention(self, name: str) -> bool:
        """Initialise a newly added attention layer so that the block computes the same as without it.

        The layer before the sigmoid starts at zero, so each gate is 1/2. CBAM has two gates, which
        multiply to 1/4. The norm before the attention (``bn3`` of the block) is multiplied by 2 or 4 to
        compensate.

        Args:
            name (str): A name from :meth:`backbone_keys`.

        Returns:
            bool: True if the tensor has been filled or explained.
        """
        if self._new_attention is None:
            return False
        factor, last = self._new_attention
        target = self.prefix + name
        block, is_norm, _ = name.partition('.bn3.')
        if is_norm and block in self._attending and name in self.plain and name.endswith(('weight', 'bias')):
            key = self.plain[name]
            how = f'times {factor}: the new attention gates by 1/{factor} at first'
            self.transform(target, [key], factor * self.source[key], how)
        elif last.search(name):
            self.zero(target, 'zeros: the gate is 1/2 at first')
        elif '.attention.' in name:
            self.leave(target, 'new, with no effect at first')
        else:
            return False
        return True

    @functools.cached_property
    def _attending(self) -> set[str]:
        """set[str]: Names of the blocks that have an attention layer."""
        names = (name.partition('.attention.') for name in self.backbone_keys())
        return {block for block, found, _ in names if found}

    @functools.cached_property
    def _new_attention(self) -> tuple[int, re.Pattern[str]] | None:
        """tuple: Factor that compensates a new attention, and the pattern of the tensors to set to zero.

        None if the model has no attention or the plain network has one too.
        """
        names = [name for name in self.backbone_keys() if '.attention.' in name]
        names = [name for name in names if not name.startswith(self.plugins)]
        if not names or any('.attention.' in name for name in self.plain):
            return None
        # the spatial norm would shift a map of zeros, so its own parameters are set to zero instead
        normed = any('.attention.spatial_norm.' in name for name in names)
        spatial = r'spatial_norm\.(weight|bias)' if normed else r'spatial\.weight'
        last = re.compile(rf'\.attention\.(conv\.weight|fc2\.(weight|bias)|{spatial})$')
        return 4 if any('.attention.spatial.' in name for name in names) else 2, last

    @functools.cached_property
    def plugins(self) -> tuple[str, ...]:
        """tuple[str, ...]: Prefixes of the backbone's plugin layers."""
        layers = getattr(self.backbone, 'plugin_layers', list)()
        names = {id(module): f'{name}.' for name, module in self.backbone.named_modules()}
        return tuple(names[id(layer)] for layer in layers)

    def copy_other_parts(self) -> None:
        """Copy all other parts of the model by name and explain the keys that are left on both sides."""
        target_parts = {key.split('.', 1)[0] for key in self.target}
        for key in self.target:
            if self.prefix and not key.startswith(self.prefix):
                self._take_other(key)
        used = self.used_sources()
        names = {key: name for name, key in self.plain.items()}
        for key in self.source:
            part = key.split('.', 1)[0]
            if key in used:
                continue
            if key in names:
                if why := why_absent(names[key], self.backbone):
                    self.drop(key, why)
            elif part not in target_parts or not self.prefix:
                self.drop(key, f'the model has no {part}')

    def _take_other(self, key: str) -> None:
        source = key if key in self.source else self.plain.get(re.sub(r'^head\.fc\.', 'fc.', key))
        if source is None:
            part = key.split('.', 1)[0]
            if part not in self._parts:
                self.leave(key, f'the source has no {part}')
            return
        tensor, wanted = self.source[source], self.target[key].shape
        more = wanted[1] - tensor.size(1) if tensor.dim() == len(wanted) == 2 else 0
        if getattr(self.backbone, 'with_hidden', False) and more == self.backbone.rla_channels:
            padded = torch.cat([tensor, tensor.new_zeros(tensor.size(0), more)], dim=1)
            self.transform(key, [source], padded, 'zeros for the recurrent state')
        else:
            self.copy(key, source)
