"""Where trainers put a network's weights in a checkpoint, and what they put before its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmrecur.checkpoint.layouts import below
from mmrecur.errors import TransferError

#: Keys of the weights, and of their moving average beside them (timm, torchvision, RT-DETR).
_WEIGHTS = ('state_dict', 'model', 'model_state_dict')
_AVERAGES = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema')
#: What parallel training and ``torch.compile`` add to names.
_WRAPPERS = re.compile(r'^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.')
#: Number of averaged steps: torch's ``AveragedModel`` and MMEngine's.
_COUNTERS = ('n_averaged', 'steps')


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors in a checkpoint and take ``module.`` and the like off their names.

    Args:
        checkpoint (Mapping): What a checkpoint file holds, see :func:`read_weights`.

    Returns:
        dict[str, Tensor]: The tensors by name.

    Raises:
        TransferError: If there are none.
    """
    return read_weights(checkpoint)[0]


def read_weights(
    checkpoint: Mapping[str, Any], prefix: str | None = None, ema: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """Find a network's tensors in a checkpoint of any trainer.

    The tensors stand there by name or under ``'state_dict'``, ``'model'`` or ``'model_state_dict'``; their
    moving average under ``'state_dict_ema'``, ``'model_ema'``, ``'ema_state_dict'`` or ``'ema'``. Taken off
    their names are ``module.``, ``_orig_mod.`` (``torch.compile``) and ``model.``, the latter where all have
    it or where Lightning wrote the file. Counters of averaged steps are left out.

    Args:
        checkpoint (Mapping): What a checkpoint file holds.
        prefix (str, optional): Take only what starts with it, without it, e.g. ``'teacher.'``. Defaults to
            None.
        ema (bool): Of weights and their moving average take the average, as timm does. MMEngine's
            EMAHook saves the average as ``'state_dict'`` and the weights as ``'ema_state_dict'``.
            Defaults to True.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The tensors by name, and remarks on what was chosen.

    Raises:
        TransferError: If there are none, or none with the prefix.
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
        notes.append(f'of the Lightning module only "model" is taken, not {", ".join(others)}')
        return inner, notes
    return state, notes


def _choose(checkpoint: Mapping[str, Any], ema: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors to take, and a remark where a file has both weights and average."""
    weights = next((key for key in _WEIGHTS if _tensors(checkpoint.get(key))), None)
    average = next((key for key in _AVERAGES if _tensors(checkpoint.get(key))), None)
    if weights is None and average is None:
        return _tensors(checkpoint), []
    if weights is not None and average is not None:
        # a key of that name may hold something else
        names = [set(_renamed(_tensors(checkpoint[key]))) for key in (weights, average)]
        average = average if names[0] & names[1] else None
    if weights is None or average is None:
        return _tensors(checkpoint[weights or average]), []
    if average == 'ema_state_dict' and 'steps' in checkpoint[average]:  # MMEngine exchanges the two
        weights, average = average, weights
    taken, left = (average, weights) if ema else (weights, average)
    what = 'the moving average of the weights' if ema else 'the weights, not their moving average'
    note = f'taken from {taken!r}: {what}; ema={not ema} takes {left!r}'
    return _tensors(checkpoint[taken]), [note]


def _tensors(state: Any) -> dict[str, Tensor]:
    """Tensors by name, at the top or, as some trainers do, under a further key."""
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
