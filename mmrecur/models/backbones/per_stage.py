"""Check of arguments that hold one number for each stage."""

from __future__ import annotations

from collections.abc import Sequence


def check_per_stage(name: str, value: Sequence[int], num_stages: int | None = None) -> None:
    """Raise a ValueError unless an argument holds a positive integer for each stage.

    Args:
        name (str): Name of the argument, for the message.
        value (Sequence[int]): Value to check.
        num_stages (int, optional): Number of stages; None for any number of at least one. Defaults to None.

    Raises:
        ValueError: If ``value`` is not such a sequence.
    """
    is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) > 0
    fits = is_sequence and all(type(v) is int and v > 0 for v in value)
    if not fits or len(value) != (num_stages or len(value)):
        stages = 'stage' if num_stages is None else f'of {num_stages} stages'
        raise ValueError(f'{name}={value!r}, allowed: a positive integer for each {stages}')
