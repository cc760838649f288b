"""Plain pretrained networks made into this package's, keeping what they compute."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.advice import advice, style_note
from mmrecur.checkpoint.layouts import plain_names, why_absent
from mmrecur.checkpoint.transfer import Report, Transfer, TransferError
from mmrecur.checkpoint.unwrap import read_weights

#: A rule fills a :class:`GraftTransfer` for one backbone class.
Rule = Callable[['GraftTransfer'], None]
AnyRule = TypeVar('AnyRule', bound=Callable[..., None])
_RULES: dict[str, Rule] = {}


def register_graft(name: str) -> Callable[[AnyRule], AnyRule]:
    """Declare how plain networks become a backbone.

    Args:
        name (str): Class name of the backbone; its subclasses use the rule too.

    Returns:
        Callable: Decorator of the rule.
    """

    def decorate(rule: AnyRule) -> AnyRule:
        _RULES[name] = rule
        return rule

    return decorate


def graft(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    strict: bool = True,
    prefix: str | None = None,
    ema: bool = True,
) -> tuple[dict[str, Tensor], Report]:
    """Turn a plain network's checkpoint into one for a model with a backbone of this package.

    The model computes what the plain one did wherever mathematics allows: an RLA network exactly,
    since its blocks read the recurrent state with weights of zero at first.

    Args:
        state_dict (Mapping): Checkpoint of a plain ResNet, ResNeXt, SE-, ECA-, CBAM-ResNet, ResNet-D or
            MobileNetV2 in the layout of torchvision, timm, mmpretrain or mmdet, or of a whole classifier
            or detector; as MMEngine, timm, torchvision, Lightning or torch alone save it, see
            :func:`mmrecur.checkpoint.unwrap.read_weights`.
        model (nn.Module): A backbone of this package, or a classifier or detector with one as
            ``backbone``. It is not changed.
        strict (bool): Raise if a key is not explained. Defaults to True.
        prefix (str, optional): Take only what starts with it, without it, e.g. ``'teacher.'``. Defaults to
            None.
        ema (bool): Where the file has the weights and their moving average, take the average. Defaults to
            True.

    Returns:
        tuple[dict[str, Tensor], Report]: A state dict that ``model.load_state_dict`` takes, and the
        account of every key.

    Raises:
        ValueError: If the model has no backbone with a rule, or is in its inference form.
        TransferError: If keys or shapes do not fit, with ``strict``; always if nothing fits. The message
            says which options of the backbone would, where that is known.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RLAResNet
        >>> model = RLAResNet(50)
        >>> state, report = graft(torch.load('resnet50.pth'), model)  # doctest: +SKIP
        >>> model.load_state_dict(state)  # doctest: +SKIP
    """
    backbone = getattr(model, 'backbone', model)
    rule = next((_RULES[c.__name__] for c in type(backbone).__mro__ if c.__name__ in _RULES), None)
    if rule is None:
        raise ValueError(f'backbone of type {type(backbone).__name__}, allowed: {", ".join(sorted(_RULES))}')
    source, notes = read_weights(state_dict, prefix, ema)
    transfer = GraftTransfer(source, model)
    transfer.report.notes += [*notes, *style_note(state_dict, transfer)]
    try:
        rule(transfer)
        transfer.copy_other_parts()
        return transfer.finish(strict)
    except TransferError as error:
        raise TransferError(f'{error}{advice(transfer)}') from error


class GraftTransfer(Transfer):
    """A transfer from a plain network, with what rules need to know of both sides.

    Args:
        source (Mapping[str, Tensor]): The plain checkpoint.
        model (nn.Module): The model to fill.

    Attributes:
        plain (dict[str, str]): Common name of a plain network's parameter -> key in the source.
    """

    def __init__(self, source: Mapping[str, Tensor], model: nn.Module) -> None:
        super().__init__(source, model)
        self.plain = plain_names(source)
        self._parts = {key.split('.', 1)[0] for key in source}
        self._make_room_for_pools()

    def _make_room_for_pools(self) -> None:
        """Number shortcuts as the model does: mmpretrain's ResNet-D has no pool where it would do nothing."""
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
        """Names of the backbone's tensors without the prefix, in order."""
        return [key[len(self.prefix) :] for key in self.target if key.startswith(self.prefix)]

    def take(self, name: str) -> None:
        """Copy a tensor of the backbone from the plain one of the same name, or explain its absence."""
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
        """Start a tensor that the plain network lacks at zero."""
        self.transform(target, [], torch.zeros_like(self.target[target]), how)

    def start_attention(self, name: str) -> bool:
        """Give an attention that the plain network lacks a start without a say.

        What its sigmoid reads is zero, so it gates by one half (CBAM's two by a quarter), and the norm
        before it, a block's ``bn3``, is multiplied by two or four.

        Args:
            name (str): A name among :meth:`backbone_keys`.

        Returns:
            bool: Whether the tensor has been dealt with.
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
            self.leave(target, 'new, and without a say at first')
        else:
            return False
        return True

    @functools.cached_property
    def _attending(self) -> set[str]:
        """Names of the blocks that have an attention."""
        names = (name.partition('.attention.') for name in self.backbone_keys())
        return {block for block, found, _ in names if found}

    @functools.cached_property
    def _new_attention(self) -> tuple[int, re.Pattern[str]] | None:
        """What an attention multiplies by at first, and its last tensors; None without a new one."""
        names = [name for name in self.backbone_keys() if '.attention.' in name]
        names = [name for name in names if not name.startswith(self.plugins)]
        if not names or any('.attention.' in name for name in self.plain):
            return None
        # a norm on the way would make anything of a constant map
        normed = any('.attention.spatial_norm.' in name for name in names)
        spatial = r'spatial_norm\.(weight|bias)' if normed else r'spatial\.weight'
        last = re.compile(rf'\.attention\.(conv\.weight|fc2\.(weight|bias)|{spatial})$')
        return 4 if any('.attention.spatial.' in name for name in names) else 2, last

    @functools.cached_property
    def plugins(self) -> tuple[str, ...]:
        """What the names of the backbone's plugin layers start with."""
        layers = getattr(self.backbone, 'plugin_layers', list)()
        names = {id(module): f'{name}.' for name, module in self.backbone.named_modules()}
        return tuple(names[id(layer)] for layer in layers)

    def copy_other_parts(self) -> None:
        """Take what is not the backbone's by name; explain what stays on either side."""
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


@register_graft('RLAResNet')
def _graft_rla_resnet(transfer: GraftTransfer) -> None:
    """Plain ResNets: what is new has no say at first.

    Blocks read the recurrent state with weights of zero; attentions see
    :meth:`GraftTransfer.start_attention`.
    """
    for name in transfer.backbone_keys():
        target = transfer.prefix + name
        if transfer.start_attention(name):
            continue
        if name in transfer.plain:
            transfer.take(name)
        elif name.endswith('conv1_hidden.weight'):
            transfer.zero(target, 'zeros: the state is not read at first')
        elif '.rla.' in name or name.startswith('hidden_norm.'):
            transfer.leave(target, 'the recurrent path learns from its own initialisation')
        elif name.startswith(transfer.plugins):
            transfer.leave(target, 'a new plugin, which changes nothing at first')
        else:
            transfer.take(name)


@register_graft('RLAPreActResNet')
def _graft_rla_preact_resnet(transfer: GraftTransfer) -> None:
    """Plain pre-activated ResNets, named as this package's: the state is not read at first."""
    for name in transfer.backbone_keys():
        target = transfer.prefix + name
        if name in transfer.plain:
            transfer.take(name)
        elif name.endswith('conv1_hidden.weight'):
            transfer.zero(target, 'zeros: the state is not read at first')
        elif '.rla.' in name or '.bn1_hidden.' in name or name.startswith('hidden_norm.'):
            transfer.leave(target, 'the recurrent path learns from its own initialisation')
        else:
            transfer.take(name)
