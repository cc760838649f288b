"""Arguments that hold one value for each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def check_per_stage(name: str, value: Sequence[int], num_stages: int | None = None) -> None:
    """Raise a ValueError unless an argument holds a positive integer for each stage.

    Args:
        name (str): Name of the argument, for the message.
        value (Sequence[int]): Value to check.
        num_stages (int, optional): Number of stages; None for any number of at least one. Defaults to None.

    Raises:
        ValueError: If ``value`` is not such a sequence.
    """
    is_sequence = is_per_stage(value) and len(value) > 0
    fits = is_sequence and all(type(v) is int and v > 0 for v in value)
    if not fits or len(value) != (num_stages or len(value)):
        stages = 'stage' if num_stages is None else f'of {num_stages} stages'
        raise ValueError(f'{name}={value!r}, allowed: a positive integer for each {stages}')


def is_per_stage(value: Any) -> bool:
    """Return whether an argument is a sequence with values for stages rather than a single value."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def one_per_stage(name: str, value: Any, num_stages: int, check: Callable[[str, Any], None]) -> tuple:
    """Return one value for each stage.

    Args:
        name (str): Name of the argument, for the messages.
        value (Any): A value for all stages, or a sequence with one value for each stage.
        num_stages (int): Number of stages.
        check (Callable): Takes a name and a value, and raises if the value is not allowed.

    Returns:
        tuple: The values.

    Raises:
        ValueError: If a sequence has another length.

    Example:
        >>> from functools import partial
        >>> from mmrecur.checks import check_int
        >>> one_per_stage('rank', 4, 3, partial(check_int, minimum=0))
        (4, 4, 4)
    """
    if not is_per_stage(value):
        check(name, value)
        return (value,) * num_stages
    if len(value) != num_stages:
        raise ValueError(f'{name}={value!r}, allowed: one value, or one for each of {num_stages} stages')
    for index, item in enumerate(value):
        check(f'{name}[{index}]', item)
    return tuple(value)
