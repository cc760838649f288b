"""Extraction of a network's state dict from the containers and prefixes of different trainers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mmrecur.errors import TransferError

#: Keys of the weights, and of their moving average (timm, torchvision, RT-DETR).
_WEIGHTS = ('state_dict', 'model', 'model_state_dict')
_AVERAGES = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema')
#: Prefixes added by data-parallel training and ``torch.compile``.
_WRAPPERS = re.compile(r'^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.')
#: Counters of averaged steps in the averaged models of torch and MMEngine.
_COUNTERS = ('n_averaged', 'steps')
#: Prefixes of a backbone in a larger model.
_BACKBONE_PREFIXES = ('backbone.', 'encoder.', 'img_backbone.', 'model.backbone.')


def backbone_prefix(keys: Iterable[str]) -> str:
    """Return the prefix of the backbone's parameters in a checkpoint.

    Args:
        keys (Iterable[str]): Names in the checkpoint.

    Returns:
        str: ``'backbone.'`` or a similar prefix, the longest that occurs; empty if none does, as in a
        checkpoint of a bare backbone.
    """
    keys = list(keys)
    fitting = [p for p in _BACKBONE_PREFIXES if any(key.startswith(p) for key in keys)]
    return max(fitting, key=len, default='')


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without the prefix.

    Args:
        state (Mapping[str, Tensor]): Tensors by name.
        prefix (str): Prefix including its dot, such as ``'backbone.'``.

    Returns:
        dict[str, Tensor]: The tensors under their shorter names.
    """
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, without prefixes such as ``module.``.

    Args:
        checkpoint (Mapping): Content of a checkpoint file, see :func:`read_weights`.

    Returns:
        dict[str, Tensor]: The tensors by name.

    Raises:
        TransferError: If the checkpoint holds no tensors.
    """
    return read_weights(checkpoint)[0]


def read_weights(
    checkpoint: Mapping[str, Any], prefix: str | None = None, ema: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict in a checkpoint of MMEngine, timm, torchvision, Lightning or plain torch.

    The checkpoint is a state dict or holds one under ``'state_dict'``, ``'model'`` or
    ``'model_state_dict'``. A moving average is found under ``'state_dict_ema'``, ``'model_ema'``,
    ``'ema_state_dict'`` or ``'ema'``. The prefixes ``module.`` and ``_orig_mod.`` (``torch.compile``) are
    removed. The prefix ``model.`` is removed if all keys have it or if Lightning wrote the file. Counters
    of averaged steps are left out.

    Args:
        checkpoint (Mapping): Content of a checkpoint file.
        prefix (str, optional): Return only the keys that start with it, such as ``'teacher.'``, and remove
            it from them. Defaults to None.
        ema (bool): Prefer the moving average of the weights if the checkpoint holds both, as timm does.
            MMEngine's EMAHook saves the average as ``'state_dict'`` and the weights as
            ``'ema_state_dict'``; this is taken into account. Defaults to True.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The tensors by name, and notes on the choices made.

    Raises:
        TransferError: If the checkpoint holds no tensors, or none with the prefix.
    """
    tensors, notes = _choose(checkpoint, ema)
    if not tensors:
        raise TransferError(f'no tensors in the checkpoint, whose keys are {list(checkpoint)[:8]}')
    state = _renamed(tensors)
    inner = below(state, 'model.')
    if prefix:
        wanted = _WRAPPERS.sub('', prefix.rstrip('.') + '.')
        found = below(state, wanted) or below(inner, wanted)
        if not found:
            parts = dict.fromkeys(f'{key.split(".", 1)[0]}.' for key in state)
            raise TransferError(
                f'prefix={prefix!r}: no key starts with it; keys start with {", ".join([*parts][:8])}'
            )
        return found, notes
    if len(inner) == len(state):
        return inner, notes
    if inner and 'pytorch-lightning_version' in checkpoint:
        others = dict.fromkeys(key.split('.', 1)[0] for key in state if not key.startswith('model.'))
        notes.append(f'only "model" of the Lightning module is used, not {", ".join(others)}')
        return inner, notes
    return state, notes


def _choose(checkpoint: Mapping[str, Any], ema: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights or their moving average, and a note if the checkpoint holds both."""
    weights = next((key for key in _WEIGHTS if _tensors(checkpoint.get(key))), None)
    average = next((key for key in _AVERAGES if _tensors(checkpoint.get(key))), None)
    if weights is None and average is None:
        return _tensors(checkpoint), []
    if weights is not None and average is not None:
        # a key of that name may hold another network
        names = [set(_renamed(_tensors(checkpoint[key]))) for key in (weights, average)]
        average = average if names[0] & names[1] else None
    if weights is None or average is None:
        return _tensors(checkpoint[weights or average]), []
    if average == 'ema_state_dict' and 'steps' in checkpoint[average]:  # MMEngine swaps the two
        weights, average = average, weights
    taken, left = (average, weights) if ema else (weights, average)
    what = 'the moving average of the weights' if ema else 'the weights, not their moving average'
    note = f'taken from {taken!r}: {what}; ema={not ema} takes {left!r}'
    return _tensors(checkpoint[taken]), [note]


def _tensors(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a dict, or of a dict inside it if it has none of its own."""
    if not isinstance(state, Mapping):
        return {}
    found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for key in () if found else (*_WEIGHTS, 'module'):
        found = found or _tensors(state.get(key))
    return found


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {key: _WRAPPERS.sub('', key) for key in tensors if key not in _COUNTERS}
    if len(set(names.values())) < len(names):
        double = [key for key, name in names.items() if key != name and name in tensors]
        raise TransferError(f'the checkpoint has keys with and without a prefix: {", ".join(double[:4])}')
    return {name: tensors[key] for key, name in names.items()}
