"""Plain networks brought into shared filter bases by least squares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.layouts import backbone_prefix
from mmrecur.checkpoint.layouts_mobilenet import mobilenet_names
from mmrecur.errors import TransferError
from mmrecur.models.backbones.mobilenet_v2_shared import MobileNetV2Shared
from mmrecur.models.backbones.resnext_shared import GroupedBasisConv2d
from mmrecur.models.backbones.shared_basis_backbone import BasisStage, SharedBasisBackbone
from mmrecur.models.layers.common.fuse import is_fusible
from mmrecur.models.layers.filter_basis.basis import BasisConv2d, FactorizedConv2d

_NORM = re.compile(r'\.(conv\d)\.norm\.(weight|bias|running_mean|running_var|num_batches_tracked)$')


@register_graft('SharedBasisBackbone')
def graft_shared(transfer: GraftTransfer) -> None:
    """Fill a backbone with shared bases from its plain counterpart.

    What blocks share is fitted to all their convolutions at once, in the sense of least squares:

    - A factorised convolution's basis gets orthonormal rows that span most of the stacked filters of its
      group (their first right singular vectors). Its coefficients are the projections. What is left of a
      layer's filters is treated the same way for its unique filters. Exact where the rank suffices.
    - A convolution that is shared as a whole gets the average.
    - The norm between basis and coefficients starts as the identity in evaluation. In training it
      normalises by the statistics of a batch, so the network changes with the first step unless norms
      are kept in evaluation mode (``norm_eval``).

    A MobileNetV2 of the authors has an expansion in its first stage and biases beside two norms, which others
    lack: these start as the identity and as zeros. An attention that the plain network lacks starts without a
    say, see :meth:`GraftTransfer.start_attention`.

    The report says for each layer how far the fit is off: ``||W - W'|| / ||W||``.

    Args:
        transfer (GraftTransfer): The transfer to fill.
    """
    if isinstance(transfer.backbone, MobileNetV2Shared):
        transfer.plain = mobilenet_names(transfer.source)
        if 'layer1.0.conv1.weight' not in transfer.plain:
            transfer.report.notes.append(
                'blocks of this network have ReLU where those of other MobileNetV2s have ReLU6: maps differ '
                'where these reach 6'
            )
    # a network of this package keeps its own names where other libraries name norms otherwise
    own, prefix = set(transfer.backbone_keys()), backbone_prefix(transfer.source)
    transfer.plain = {
        key[len(prefix) :] if key[len(prefix) :] in own else name: key for name, key in transfer.plain.items()
    }
    fitted: dict[str, tuple[Sequence[str], Tensor, str]] = {}
    errors: dict[str, float] = {}
    backbone: SharedBasisBackbone = transfer.backbone
    for stage_name in backbone.stages:
        stage: BasisStage = getattr(backbone, stage_name)
        for name, places in _groups(backbone, stage_name).items():
            weights = {place: f'{place}.weight' for place in places}
            if not all(weight in transfer.plain for weight in weights.values()):
                continue  # of a network that shares already, or a misfit that is named as such
            sources = [transfer.plain[weight] for weight in weights.values()]
            filters = [transfer.source[key].double() for key in sources]
            wanted = stage.basis[name].weight.shape
            if any(f.shape[1:] != wanted[1:] for f in filters):
                continue
            modules = [backbone.get_submodule(place) for place in places]
            if isinstance(modules[0], BasisConv2d):
                basis, how = torch.stack(filters).mean(0), f'average of {len(filters)}'
                errors.update({p: _error(f, basis) for p, f in zip(places, filters)})
            else:
                basis = principal(torch.cat([f.flatten(1) for f in filters]), wanted[0])
                how = f'least squares over {len(filters)} convolutions'
                for place, module, key, kernel in zip(places, modules, sources, filters):
                    parts, errors[place] = _project(kernel, basis, module)
                    for part, tensor in parts.items():
                        fitted[f'{place}.{part}'] = ([key], tensor, 'projection onto the basis')
                basis = basis.view(wanted)
            fitted[f'{stage_name}.basis.{name}.weight'] = (sources, basis, how)
    _fill(transfer, fitted)
    transfer.report.errors.update(errors)
    if errors:
        shown = ', '.join(f'{place} {error:.1%}' for place, error in errors.items())
        transfer.report.notes.append(f"relative error of the filters, ||W - W'|| / ||W||: {shown}")


def _groups(backbone: SharedBasisBackbone, stage_name: str) -> dict[str, list[str]]:
    """Names of the bases of a stage, and the convolutions in the backbone that read them."""
    bases = getattr(backbone, stage_name).basis or {}
    groups: dict[str, list[str]] = {name: [] for name in bases}
    for place, module in backbone.named_modules():
        if isinstance(module, (FactorizedConv2d, BasisConv2d)) and '.parts.' not in place:
            for name, basis in bases.items():
                if module.basis is basis:
                    groups[name].append(place)
    return {name: places for name, places in groups.items() if places}


def principal(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal rows whose span is nearest to the rows of a matrix.

    Args:
        matrix (Tensor): Shape (N, K), in double precision.
        rank (int): How many rows, at most K.

    Returns:
        Tensor: The first right singular vectors, completed by others if there are too few; shape
        (rank, K).

    Raises:
        TransferError: If the rank is larger than K.
    """
    if rank > matrix.size(1):
        raise TransferError(
            f'a basis of {rank} filters, allowed for a fit: at most {matrix.size(1)}, as many as one has '
            'entries'
        )
    rows = torch.linalg.svd(matrix, full_matrices=len(matrix) < rank)[2]
    return rows[:rank]


def _project(kernel: Tensor, basis: Tensor, module: FactorizedConv2d) -> tuple[dict[str, Tensor], float]:
    """Unique filters and coefficients of a layer, and the relative error that is left."""
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
    """Beginnings of names that a plain ResNeXt says nothing about."""
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
    why = 'a ReLU stands between basis and coefficients: no linear fit'
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
    """Give what other MobileNetV2s lack a start at which it does nothing; whether ``name`` is of that."""
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
    """Let the norm behind a basis do nothing in evaluation."""
    if leaf == 'num_batches_tracked':
        transfer.leave(target, 'a counter')
        return
    if not is_fusible(norm):
        transfer.leave(target, 'normalises in evaluation too: the fit does not hold')
        return
    # it divides by the root of the variance and a small number
    value = dict(weight=(1 + norm.eps) ** 0.5, bias=0.0, running_mean=0.0, running_var=1.0)[leaf]
    tensor = torch.full_like(transfer.target[target], value)
    transfer.transform(target, [], tensor, 'the identity in evaluation')
