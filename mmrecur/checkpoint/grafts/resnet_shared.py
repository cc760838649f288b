"""Plain networks grafted into networks with shared filter bases, by least squares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.align import align_blocks
from mmrecur.checkpoint.grafts.basis_fit import refit_bases
from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.grafts.mobilenet_names import mobilenet_names
from mmrecur.checkpoint.grafts.plain_network import plain_network, refit_if_closer
from mmrecur.checkpoint.grafts.relaxation import fit_relaxation
from mmrecur.checkpoint.unwrap import backbone_prefix
from mmrecur.errors import TransferError
from mmrecur.models.backbones.mobilenet_v2_shared import MobileNetV2Shared
from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone
from mmrecur.models.layers.common.fuse import is_fusible
from mmrecur.models.layers.filter_basis import BasisConv2d, BasisStage, FactorizedConv2d, GroupedBasisConv2d

_NORM = re.compile(r'\.(conv\d)\.norm\.(weight|bias|running_mean|running_var|num_batches_tracked)$')


@register_graft(SharedBasisBackbone)
def graft_shared_basis(transfer: GraftTransfer) -> None:
    """Fill a backbone with shared filter bases from its plain counterpart.

    Shared weights are the least-squares fit to all convolutions that share them. Without images it concerns
    their weights, with images their outputs, given the plain network's maps:

    - The basis of a factorised convolution has orthonormal rows: the first right singular vectors of the
      stacked filters of its group. The coefficients are the projections onto it. The unique filters of a
      layer are fitted to the residual in the same way. The fit is exact if the rank suffices.
    - A convolution that is shared as a whole is the average, after the inner channels of the blocks have
      been brought into one order (:func:`align_blocks`). With images, outputs of equal variance are fitted,
      and the norm behind each layer takes up the difference. Residuals (``relaxation_rank``) are the closest
      of their rank to the differences from the average, which is then not fitted; at full rank the graft
      is exact.
    - The norm between basis and coefficients is the identity in evaluation. In training it normalises by
      batch statistics, so without images the network changes with the first step unless ``norm_eval`` is
      set. With images, the norm has their statistics and is the identity on them in training, too.

    The authors' MobileNetV2 has an expansion in its first stage and two biases that other MobileNetV2s lack;
    they start as the identity and as zeros. For new attention layers see
    :meth:`GraftTransfer.start_attention`.

    The report holds the relative error of each layer: ``||W - W'|| / ||W||`` of the filters without images,
    ``||y - y'|| / ||y||`` of the outputs with images.

    Args:
        transfer (GraftTransfer): The transfer to fill.
    """
    if isinstance(transfer.backbone, MobileNetV2Shared):
        transfer.plain = mobilenet_names(transfer.source)
        if 'layer1.0.conv1.weight' not in transfer.plain:
            transfer.report.notes.append(
                'blocks of this network use ReLU and those of other MobileNetV2s ReLU6: feature maps differ '
                'where they exceed 6'
            )
    # plain networks of this package may use names that are renamed for other libraries
    own, prefix = set(transfer.backbone_keys()), backbone_prefix(transfer.source)
    transfer.plain = {
        key[len(prefix) :] if key[len(prefix) :] in own else name: key for name, key in transfer.plain.items()
    }
    _align(transfer)
    fits = _fit_bases(transfer)
    _fill(transfer, fits.tensors)
    what = "filters, ||W - W'|| / ||W||"
    if transfer.images is not None and fits.errors:
        network, groups = plain_network(transfer), _refitted_groups(transfer)
        if errors := refit_if_closer(transfer, network, lambda: refit_bases(transfer, network, groups)):
            fits.errors.update(errors)
            what = "outputs, ||y - y'|| / ||y||"
    transfer.report.errors.update(fits.errors)
    if fits.errors:
        shown = ', '.join(f'{place} {error:.1%}' for place, error in fits.errors.items())
        transfer.report.notes.append(f'relative error of the {what}: {shown}')


@dataclass
class _Fits:
    """Fitted tensors: source keys, tensor and explanation by name; relative errors by convolution."""

    tensors: dict[str, tuple[Sequence[str], Tensor, str]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def _fit_bases(transfer: GraftTransfer) -> _Fits:
    """Fit every basis whose convolutions the source has, in the right shapes."""
    fits = _Fits()
    backbone: SharedBasisBackbone = transfer.backbone
    for stage_name in backbone.stages:
        stage: BasisStage = getattr(backbone, stage_name)
        for name, places in basis_readers(backbone, stage_name).items():
            if not all(f'{place}.weight' in transfer.plain for place in places):
                continue  # the source shares weights already, or finish() reports the missing keys
            sources = [transfer.plain[f'{place}.weight'] for place in places]
            filters = [transfer.source[key].double() for key in sources]
            wanted = stage.basis[name].weight.shape
            if any(f.shape[1:] != wanted[1:] for f in filters):
                continue
            modules = [backbone.get_submodule(place) for place in places]
            if isinstance(modules[0], BasisConv2d):
                basis, how = torch.stack(filters).mean(0), f'average of {len(filters)}'
                for place, module, key, kernel in zip(places, modules, sources, filters):
                    parts, own = fit_relaxation(kernel, basis, module.relaxation)
                    fits.errors[place] = _error(kernel, own)
                    for part, tensor in parts.items():
                        name_of_part = f'{place}.relaxation.{part}'
                        fits.tensors[name_of_part] = ([key], tensor, 'residual of the average')
            else:
                basis = principal(torch.cat([f.flatten(1) for f in filters]), wanted[0])
                how = f'least squares over {len(filters)} convolutions'
                for place, module, key, kernel in zip(places, modules, sources, filters):
                    parts, fits.errors[place] = _project(kernel, basis, module)
                    for part, tensor in parts.items():
                        fits.tensors[f'{place}.{part}'] = ([key], tensor, 'projection onto the basis')
                basis = basis.view(wanted)
            fits.tensors[f'{stage_name}.basis.{name}.weight'] = (sources, basis, how)
    return fits


def _plain_groups(transfer: GraftTransfer) -> dict[str, dict[str, list[str]]]:
    """Return, for each stage and basis, the convolutions that read it, if the source has all of them."""
    groups: dict[str, dict[str, list[str]]] = {}
    for stage in transfer.backbone.stages:
        for name, places in basis_readers(transfer.backbone, stage).items():
            if all(f'{place}.weight' in transfer.plain for place in places):
                groups.setdefault(stage, {})[name] = places
    return groups


def _refitted_groups(transfer: GraftTransfer) -> dict[str, dict[str, list[str]]]:
    """Return :func:`_plain_groups` without convolutions that have residuals."""

    def is_relaxed(place: str) -> bool:
        return getattr(transfer.backbone.get_submodule(place), 'relaxation', None) is not None

    return {
        stage: {name: places for name, places in bases.items() if not any(map(is_relaxed, places))}
        for stage, bases in _plain_groups(transfer).items()
    }


def _align(transfer: GraftTransfer) -> None:
    """Align the inner channels of the blocks that share whole convolutions, stage by stage.

    Coefficients make up for most of the order: aligned blocks share a basis no better.
    """
    for bases in _plain_groups(transfer).values():
        shared: dict[str, set[str]] = {}
        for place in (place for places in bases.values() for place in places):
            block, conv = place.rsplit('.', 1)
            if isinstance(transfer.backbone.get_submodule(place), BasisConv2d):
                shared.setdefault(block, set()).add(conv)
        if shared:
            align_blocks(transfer, transfer.backbone.get_submodule(next(iter(shared))), shared)


def basis_readers(backbone: SharedBasisBackbone, stage_name: str) -> dict[str, list[str]]:
    """Return the names of the convolutions that read each basis of a stage."""
    bases = getattr(backbone, stage_name).basis or {}
    groups: dict[str, list[str]] = {name: [] for name in bases}
    for place, module in backbone.named_modules():
        if isinstance(module, (FactorizedConv2d, BasisConv2d)) and '.parts.' not in place:
            for name, basis in bases.items():
                if module.basis is basis:
                    groups[name].append(place)
    return {name: places for name, places in groups.items() if places}


def principal(matrix: Tensor, rank: int) -> Tensor:
    """Return orthonormal rows whose span is closest to the rows of a matrix.

    Args:
        matrix (Tensor): Shape (N, K), in double precision.
        rank (int): Number of rows, at most K.

    Returns:
        Tensor: The first right singular vectors, shape (rank, K). If N < rank, they are completed to an
        orthonormal set.

    Raises:
        TransferError: If the rank is larger than K.
    """
    if rank > matrix.size(1):
        raise TransferError(
            f'a basis of {rank} filters, allowed for a fit: at most {matrix.size(1)}, the entries of a filter'
        )
    rows = torch.linalg.svd(matrix, full_matrices=len(matrix) < rank)[2]
    return rows[:rank]


def _project(kernel: Tensor, basis: Tensor, module: FactorizedConv2d) -> tuple[dict[str, Tensor], float]:
    """Return the unique filters and coefficients of a layer, and the relative error of the fit."""
    matrix = kernel.flatten(1)
    shared = matrix @ basis.T
    rest = matrix - shared @ basis
    parts: dict[str, Tensor] = {}
    coefficients = [shared]
    if module.unique is not None:
        unique = principal(rest, len(module.unique.weight))
        own = rest @ unique.T
        rest = rest - own @ unique
        parts['unique.weight'] = unique.view(module.unique.weight.shape)
        coefficients.insert(0, own)
    parts['coefficients.weight'] = torch.cat(coefficients, 1)[..., None, None]
    return parts, (rest.norm() / matrix.norm()).item()


def _error(kernel: Tensor, fit: Tensor) -> float:
    return ((kernel - fit).norm() / kernel.norm()).item()


def _without_fit(transfer: GraftTransfer) -> tuple[str, ...]:
    """Return the prefixes of names in a ResNeXt that have no counterpart in a plain one."""
    unfit: list[str] = []
    for place, module in transfer.backbone.named_modules():
        if isinstance(module, GroupedBasisConv2d):
            stage, block, _ = place.split('.')
            if f'{stage}.basis.conv2.weight' not in transfer.plain:
                unfit += [f'{stage}.{block}.{part}.' for part in ('conv2', 'bn2', 'conv3')]
                unfit.append(f'{stage}.basis.')
    return tuple(unfit)


def _fill(transfer: GraftTransfer, fitted: Mapping[str, tuple[Sequence[str], Tensor, str]]) -> None:
    modules = dict(transfer.backbone.named_modules())
    unfit = _without_fit(transfer)
    why = 'no linear fit: a ReLU stands between basis and coefficients'
    for name, key in transfer.plain.items():
        if unfit and name.startswith(unfit):
            transfer.drop(key, why)
    for name in transfer.backbone_keys():
        target = transfer.prefix + name
        if unfit and name.startswith(unfit):
            transfer.leave(target, why)
        elif transfer.start_attention(name):
            continue
        elif name in fitted:
            sources, tensor, how = fitted[name]
            transfer.transform(target, sources, tensor.to(transfer.target[target].dtype), how)
        elif name in transfer.plain:
            transfer.take(name)
        elif (match := _NORM.search(name)) and f'{name[: match.end(1)]}.coefficients.weight' in fitted:
            norm = modules[name.rsplit('.', 1)[0]]
            _identity(transfer, target, match[2], norm)
        elif not _add_to_mobilenet(transfer, name):
            transfer.take(name)


def _add_to_mobilenet(transfer: GraftTransfer, name: str) -> bool:
    """Initialise a tensor that only the authors' MobileNetV2 has so that it has no effect.

    Returns:
        bool: Whether ``name`` is such a tensor.
    """
    backbone, target = transfer.backbone, transfer.prefix + name
    if not isinstance(backbone, MobileNetV2Shared):
        return False
    if name in ('conv1.bias', 'conv2.bias'):
        transfer.zero(target, 'zeros: the plain network has none')
    elif name == 'layer1.0.conv1.weight':
        eye = torch.eye(backbone.conv1.out_channels)[..., None, None]
        how = 'the identity: the plain network has no expansion there'
        transfer.transform(target, [], eye.to(transfer.target[target]), how)
    elif match := re.fullmatch(r'layer1\.0\.bn1\.(\w+)', name):
        _identity(transfer, target, match[1], backbone.get_submodule('layer1.0.bn1'))
    else:
        return False
    return True


def _identity(transfer: GraftTransfer, target: str, leaf: str, norm: nn.Module) -> None:
    """Make a norm the identity in evaluation."""
    if leaf == 'num_batches_tracked':
        transfer.leave(target, 'a counter')
        return
    if not is_fusible(norm):
        transfer.leave(target, 'normalises in evaluation too: the fit does not hold')
        return
    # a norm divides by sqrt(variance + eps)
    value = dict(weight=(1 + norm.eps) ** 0.5, bias=0.0, running_mean=0.0, running_var=1.0)[leaf]
    tensor = torch.full_like(transfer.target[target], value)
    transfer.transform(target, [], tensor, 'the identity in evaluation')
