"""Check that checkpoints fit the run that loads them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.runner import Runner

from mmrecur.errors import CheckpointError

#: Entries that resuming needs, with their types.
_STATE = {'meta': dict, 'state_dict': dict, 'message_hub': dict, 'optimizer': dict}
_META = {'epoch': int, 'iter': int, 'seed': (int, type(None))}


def check_resumable(source: str, checkpoint: dict[str, Any]) -> None:
    """Check that a training can be resumed from a checkpoint.

    Args:
        source (str): Name of the checkpoint in messages.
        checkpoint (dict): The checkpoint.

    Raises:
        CheckpointError: If an entry is missing or malformed.
    """
    lacking = set(_STATE) - set(checkpoint)
    if lacking:
        raise CheckpointError(
            f'checkpoint {source!r} cannot be resumed: it lacks {", ".join(sorted(lacking))}; to '
            f'start from its weights use --cfg-options load_from={source}'
        )
    entries = [(name, checkpoint[name], kind) for name, kind in _STATE.items()]
    if isinstance(checkpoint['meta'], dict):
        entries += [(f'meta.{name}', checkpoint['meta'].get(name), kind) for name, kind in _META.items()]
    for name, value, kind in entries:
        # bool is a subclass of int.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(
                f'checkpoint {source!r} cannot be resumed: {name} is {_short(value)}; allowed: '
                f'{"a dict" if kind is dict else "a whole number"}'
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'a {type(value).__name__}'


def check_weights(source: str, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint contains named weights.

    Args:
        source (str): Name of the checkpoint in messages.
        checkpoint (dict): The checkpoint, or a state dict.

    Raises:
        CheckpointError: If it contains no weights, or anything else in their place.
    """
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f'checkpoint {source!r} refused: state_dict is {_short(state)}; allowed: tensors by name'
        )
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f'checkpoint {source!r} refused: it contains no weights')


def load_strictly(runner: Runner) -> None:
    """Let a runner load only checkpoints that match its model and optimizer exactly.

    MMEngine only warns about missing weights and leaves them random.

    Args:
        runner (Runner): Changed in place. Loading a checkpoint that does not match raises CheckpointError.
    """
    load = runner.load_checkpoint

    def load_checkpoint(filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            checkpoint = load(filename, *args, **dict(kwargs, strict=True))
        except (CheckpointError, torch.cuda.OutOfMemoryError):
            raise
        except RuntimeError as error:  # from Module.load_state_dict
            raise CheckpointError(
                f'checkpoint {filename!r} does not fit the model of the config: {error}'
            ) from error
        _check_optimizer(runner, filename, checkpoint)
        return checkpoint

    runner.load_checkpoint = load_checkpoint


def _check_optimizer(runner: Runner, source: str, checkpoint: dict[str, Any]) -> None:
    """Raise CheckpointError if a run would resume with the state of another optimizer."""
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    saved = checkpoint.get('optimizer')
    groups = saved.get('param_groups') if isinstance(saved, dict) else None
    if not runner._resume or optimizer is None or not groups:
        return
    sizes = [[len(group['params']) for group in which] for which in (groups, optimizer.param_groups)]
    # A newer PyTorch may add options to an optimizer. Another optimizer also lacks some.
    names = [set(which[0]) - {'initial_lr'} for which in (groups, optimizer.param_groups)]
    if sizes[0] != sizes[1] or (names[0] - names[1] and names[1] - names[0]):
        raise CheckpointError(
            f'checkpoint {source!r} cannot be resumed: its optimizer had the options '
            f'{", ".join(sorted(names[0]))} and {sum(sizes[0])} parameters in {len(groups)} groups, '
            f'the {type(optimizer).__name__} of the config has {", ".join(sorted(names[1]))} and '
            f'{sum(sizes[1])} in {len(sizes[1])}; to start from its weights use --cfg-options '
            f'load_from={source}'
        )
