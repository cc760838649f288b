"""Template banks for the convolutions of any network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from mmrecur.checks import check_flag
from mmrecur.models.layers.common.modes import generators_kept
from mmrecur.models.layers.template_bank.bank import TemplateBank
from mmrecur.models.layers.template_bank.conv import TemplateConv2d
from mmrecur.models.layers.template_bank.fit import fit_templates

#: Types of convolutions that can share.
_SHAREABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: For each group a shell pattern over module names, or several.
Groups = Sequence[str | Sequence[str]]


def share_convs(
    module: nn.Module,
    num_templates: int | str,
    groups: Groups | None = None,
    from_weights: bool = False,
    coefficient_init: str = 'orthogonal',
) -> dict[str, TemplateBank]:
    """Replace convolutions of a network, in place, by convolutions that share template banks.

    Convolutions can share if their weights have the same shape. Strides, paddings, dilations, groups and
    biases stay individual (Savarese and Maire 2019, Section 3). The first layer of a group owns the bank, so
    the state dict contains ``NAME.bank.templates`` and ``NAME.bank.coefficients`` under the name of that
    layer. Train the coefficients without weight decay.

    These convolutions are left alone: transposed convolutions, subclasses of torch's convolutions, and those
    with a computed weight (weight norm, spectral norm, pruning). A group with frozen weights gets a frozen
    bank.

    Args:
        module (nn.Module): Any network; it must not itself be a convolution.
        num_templates (int or str): Number of templates of each group, at most one per layer. ``'per_layer'``
            gives every group one template per layer.
        groups (Sequence, optional): The groups. Each is a shell pattern over module names, such as
            ``'layer3.*.conv2'``, or a list of patterns. Defaults to None: all layers of one shape form a
            group, provided there are at least two.
        from_weights (bool): Fit templates and coefficients to the present weights, exactly with one template
            per layer, else approximately (:func:`fit_templates`). False initialises them randomly, as in the
            paper. Defaults to False.
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.

    Returns:
        dict[str, TemplateBank]: The banks by the names of the layers that own them.

    Raises:
        TypeError, ValueError: If an argument is wrong, a pattern matches no convolution, two groups contain
            the same convolution, or shapes differ within a group. The network is then unchanged.

    Example:
        >>> import torchvision  # doctest: +SKIP
        >>> model = torchvision.models.resnet18()  # doctest: +SKIP
        >>> banks = share_convs(model, 2, groups=['layer1.*.conv?', 'layer2.1.conv?'])  # doctest: +SKIP
    """
    if num_templates != 'per_layer' and (type(num_templates) is not int or num_templates < 1):
        raise ValueError(
            f"num_templates={num_templates!r}, allowed: an integer of at least 1, or 'per_layer'"
        )
    check_flag(from_weights=from_weights)
    if isinstance(module, _SHAREABLE):
        raise ValueError(f'module={module!r}, allowed: a network that has convolutions in it')
    convs = {name: m for name, m in module.named_modules() if _is_shareable(m)}
    found = _by_shape(convs) if groups is None else _by_patterns(convs, groups)
    _check_disjoint(found)
    # build all banks before replacing any layer, so that an error leaves the network unchanged
    banks = {
        names[0]: _bank_for([convs[name] for name in names], num_templates, from_weights, coefficient_init)
        for names in found
    }
    for names, bank in zip(found, banks.values()):
        bank.train(module.training)
        for index, layer in enumerate(convs[name] for name in names):
            options = {key: getattr(layer, key) for key in ('stride', 'padding', 'dilation', 'groups')}
            shared = TemplateConv2d(
                bank, index, **options, padding_mode=layer.padding_mode, bias=layer.bias
            ).train(layer.training)
            if index == 0:
                shared.add_module('bank', bank)
            _replace(module, layer, shared)
    return banks


def _is_shareable(module: nn.Module) -> bool:
    """Return whether a module is a plain convolution whose weight is a parameter rather than computed."""
    return type(module) in _SHAREABLE and 'weight' in module._parameters


def _bank_for(
    layers: Sequence[nn.Module], num_templates: int | str, from_weights: bool, coefficient_init: str
) -> TemplateBank:
    """Build the bank of a group."""
    count = len(layers) if num_templates == 'per_layer' else min(num_templates, len(layers))
    weight = layers[0].weight
    with torch.device(weight.device):
        bank = TemplateBank(len(layers), count, weight.shape, coefficient_init).to(weight.dtype)
    if from_weights:
        stacked = torch.stack([layer.weight.detach() for layer in layers])
        coefficients, templates, _ = fit_templates(stacked, count, bank.coefficients)
        bank.coefficients.data.copy_(coefficients)
        bank.templates.data.copy_(templates.flatten(0, 1))
    return bank.requires_grad_(any(layer.weight.requires_grad for layer in layers))


def materialise_convs(module: nn.Module) -> nn.Module:
    """Replace every :class:`TemplateConv2d` of a network, in place, by a plain convolution of equal weight.

    Banks made by :func:`share_convs` disappear with the layers that own them. The networks of this package
    own their banks themselves and keep them, unused; use ``switch_to_deploy()`` for those.

    Args:
        module (nn.Module): A network, or a part of one.

    Returns:
        nn.Module: The same network.
    """
    with generators_kept():
        for layer in [m for m in module.modules() if isinstance(m, TemplateConv2d)]:
            _replace(module, layer, layer.materialise())
    return module


def _by_shape(convs: dict[str, nn.Module]) -> list[list[str]]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, conv in convs.items():
        shapes.setdefault(tuple(conv.weight.shape), []).append(name)
    return [names for names in shapes.values() if len(names) > 1]


def _by_patterns(convs: dict[str, nn.Module], groups: Groups) -> list[list[str]]:
    is_list = isinstance(groups, Sequence) and not isinstance(groups, str)
    lists = [[group] if isinstance(group, str) else group for group in groups] if is_list else [None]
    if not all(isinstance(g, (list, tuple)) and g and all(isinstance(p, str) for p in g) for g in lists):
        raise TypeError(f'groups={groups!r}, allowed: None, or a list of patterns and of lists of patterns')
    return [_matching(convs, patterns) for patterns in lists]


def _matching(convs: dict[str, nn.Module], group: Sequence[str]) -> list[str]:
    for pattern in group:
        if not any(fnmatchcase(name, pattern) for name in convs):
            raise ValueError(
                f'groups: {pattern!r} matches no convolution that can share, allowed: patterns over '
                f'{_some(convs)}'
            )
    names = [name for name in convs if any(fnmatchcase(name, pattern) for pattern in group)]
    shapes = {name: tuple(convs[name].weight.shape) for name in names}
    if len(set(shapes.values())) > 1:
        raise ValueError(f'groups: {group!r} matches layers of different shapes, {shapes}')
    return names


def _check_disjoint(groups: Iterable[Sequence[str]]) -> None:
    seen: set[str] = set()
    for names in groups:
        if twice := seen.intersection(names):
            raise ValueError(f'groups: {", ".join(sorted(twice))} in two groups, allowed: in one')
        seen.update(names)


def _some(names: Iterable[str]) -> str:
    """List names for a message, with numbers replaced by ``*`` and duplicates removed."""
    return ', '.join(dict.fromkeys(re.sub(r'\b\d+\b', '*', name) for name in names))


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module everywhere it is registered under ``root``."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
