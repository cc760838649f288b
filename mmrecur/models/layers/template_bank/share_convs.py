"""Soft parameter sharing for the convolutions of any network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_flag
from mmrecur.models.layers.common.modes import generators_kept
from mmrecur.models.layers.template_bank.bank import TemplateBank, TemplateConv2d
from mmrecur.models.layers.template_bank.fit import fit_templates

_SHAREABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Groups = Sequence[str | Sequence[str]]


def share_convs(
    module: nn.Module,
    num_templates: int | str,
    groups: Groups | None = None,
    from_weights: bool = False,
    coefficient_init: str = 'orthogonal',
) -> dict[str, TemplateBank]:
    """Make convolutions of a network draw their weights from template banks, in place.

    Any convolutions of equal shape can share; strides, paddings, dilations, groups and biases stay each
    layer's own (Savarese and Maire 2019, Section 3). The first layer of a group holds the bank, so that
    the state dict has ``NAME.bank.templates`` and ``NAME.bank.coefficients`` under that layer's name and
    no more weights under the others'. Give the coefficients no weight decay.

    Transposed convolutions, subclasses of torch's convolutions, and those whose weight is computed already
    (weight and spectral norm, pruning) stay as they are. A group that did not learn (``requires_grad``) does
    not learn afterwards.

    Args:
        module (nn.Module): Any network; it must not be a convolution itself.
        num_templates (int or str): Templates of each group, in a group of fewer layers one per layer;
            ``'per_layer'`` for one per layer in every group.
        groups (Sequence, optional): Layers that share: for each group a shell pattern over module names,
            ``'layer3.*.conv2'``, or several in a list. Defaults to None: all layers of equal shape, where
            there are two or more.
        from_weights (bool): Start from the network's weights, exactly with one template per layer, else by
            their best approximation; otherwise from new ones, as in the paper. Defaults to False.
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.

    Returns:
        dict[str, TemplateBank]: The banks by the name of the layer that holds them.

    Raises:
        TypeError, ValueError: If an argument is wrong, a pattern matches no convolution, one convolution is
            in two groups, or shapes in a group differ; the network is unchanged then.

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
    # all before the first is put in its place: an error leaves the network as it was
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
    """Whether a module is a convolution with a weight of its own, none that is made of other tensors."""
    return type(module) in _SHAREABLE and 'weight' in module._parameters


def _bank_for(
    layers: Sequence[nn.Module], num_templates: int | str, from_weights: bool, coefficient_init: str
) -> TemplateBank:
    """The bank of a group."""
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
    """Make every convolution that draws from a bank a plain one with the same weight, in place.

    Banks of :func:`share_convs` go with the layers that hold them. Networks that hold their banks
    themselves, as this package's do, keep them, unused; they have ``switch_to_deploy()``.

    Args:
        module (nn.Module): A network, or a part of one.

    Returns:
        nn.Module: The network, for inference.
    """
    with generators_kept():
        for layer in [m for m in module.modules() if isinstance(m, TemplateConv2d)]:
            _replace(module, layer, layer.materialise())
    return module


def template_banks(module: nn.Module) -> dict[str, TemplateBank]:
    """Banks of a network.

    Args:
        module (nn.Module): Any network.

    Returns:
        dict[str, TemplateBank]: The banks by name, in order.
    """
    return {name: m for name, m in module.named_modules() if isinstance(m, TemplateBank)}


def check_banks(state_dict: Mapping[str, Tensor], banks: Mapping[str, TemplateBank]) -> None:
    """Raise unless a state dict has the weights of banks.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of a model.
        banks (Mapping[str, TemplateBank]): By the bank's name in the model.

    Raises:
        ValueError: Naming what is missing or has another shape.
    """
    for name, bank in banks.items():
        for own, parameter in bank.named_parameters():
            key, wanted = f'{name}.{own}', tuple(parameter.shape)
            given = tuple(state_dict[key].shape) if key in state_dict else 'nothing'
            if given != wanted:
                raise ValueError(
                    f'state_dict has {given} for {key}, allowed: weights of the model, here of shape {wanted}'
                )


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
    """Names that differ in numbers only, once."""
    return ', '.join(dict.fromkeys(re.sub(r'\b\d+\b', '*', name) for name in names))


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module everywhere where another one is."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
