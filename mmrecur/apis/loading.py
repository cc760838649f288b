"""Checkpoints that must fit the run which loads them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.runner import Runner

from mmrecur.errors import CheckpointError

#: What a run is continued from, and what each of these must be.
_STATE = {'meta': dict, 'state_dict': dict, 'message_hub': dict, 'optimizer': dict}
_META = {'epoch': int, 'iter': int, 'seed': (int, type(None))}


def check_resumable(source: str, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint holds a state of training, not weights alone.

    Args:
        source (str): Where it comes from, for messages.
        checkpoint (dict): The checkpoint.

    Raises:
        CheckpointError: If something is missing or malformed.
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
        # bool is an int, and no number of epochs.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(
                f'checkpoint {source!r} cannot be resumed: {name} is {_short(value)}; allowed: '
                f'{"a dict" if kind is dict else "a whole number"}'
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'a {type(value).__name__}'


def check_weights(source: str, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint holds weights by name.

    Args:
        source (str): Where it comes from, for messages.
        checkpoint (dict): The checkpoint, or a state dict.

    Raises:
        CheckpointError: If it does not.
    """
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f'checkpoint {source!r} refused: state_dict is {_short(state)}; allowed: tensors by name'
        )
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f'checkpoint {source!r} refused: it holds no weights')


def load_strictly(runner: Runner) -> None:
    """Let a runner load only checkpoints with exactly the weights of its model, and its optimizer's state.

    MMEngine only warns about missing weights and goes on with a model that is random there.

    Args:
        runner (Runner): Changed in place; its next load raises CheckpointError if the file does not fit.
    """
    load = runner.load_checkpoint

    def load_checkpoint(filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            checkpoint = load(filename, *args, **dict(kwargs, strict=True))
        except (CheckpointError, torch.cuda.OutOfMemoryError):
            raise
        except RuntimeError as error:  # of Module.load_state_dict
            raise CheckpointError(
                f'checkpoint {filename!r} does not fit the model of the config: {error}'
            ) from error
        _check_optimizer(runner, filename, checkpoint)
        return checkpoint

    runner.load_checkpoint = load_checkpoint


def _check_optimizer(runner: Runner, source: str, checkpoint: dict[str, Any]) -> None:
    """Raises CheckpointError if a run would go on with the state of another optimizer."""
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    saved = checkpoint.get('optimizer')
    groups = saved.get('param_groups') if isinstance(saved, dict) else None
    if not runner._resume or optimizer is None or not groups:
        return
    sizes = [[len(group['params']) for group in which] for which in (groups, optimizer.param_groups)]
    # A newer PyTorch may know more options of an optimizer; another optimizer lacks some as well.
    names = [set(which[0]) - {'initial_lr'} for which in (groups, optimizer.param_groups)]
    if sizes[0] != sizes[1] or (names[0] - names[1] and names[1] - names[0]):
        raise CheckpointError(
            f'checkpoint {source!r} cannot be resumed: its optimizer had the options '
            f'{", ".join(sorted(names[0]))} and {sum(sizes[0])} parameters in {len(groups)} groups, '
            f'the {type(optimizer).__name__} of the config has {", ".join(sorted(names[1]))} and '
            f'{sum(sizes[1])} in {len(sizes[1])}; to start from its weights use --cfg-options '
            f'load_from={source}'
        )
