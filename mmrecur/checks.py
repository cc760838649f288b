"""Checks of arguments. The messages name the argument, its value and the allowed values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise unless ``value`` is one of ``allowed``.

    Args:
        name (str): Name of the argument.
        value (Any): Value of the argument.
        allowed (Iterable): Allowed values.

    Raises:
        ValueError: If ``value`` is not among ``allowed``. ``True`` does not pass for 1.
    """
    allowed = tuple(allowed)
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ValueError(f'{name}={value!r}, allowed: {", ".join(map(repr, allowed))}')


def check_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Raise unless ``value`` is an integer in ``[minimum, maximum]``.

    Args:
        name (str): Name of the argument.
        value (Any): Value of the argument.
        minimum (int): Smallest allowed value.
        maximum (int, optional): Largest allowed value; no bound by default.

    Raises:
        ValueError: If ``value`` is not an integer or is out of range.
    """
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value >= minimum and (maximum is None or value <= maximum):
        return
    bound = f'of at least {minimum}' if maximum is None else f'from {minimum} to {maximum}'
    raise ValueError(f'{name}={value!r}, allowed: an integer {bound}')


def check_weight(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number of at least 0.

    Args:
        name (str): Name of the argument.
        value (Any): Value of the argument.

    Raises:
        ValueError: If ``value`` is not a number, is negative or is NaN.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not value >= 0:
        raise ValueError(f'{name}={value!r}, allowed: a number of at least 0')


def check_flag(**flags: Any) -> None:
    """Raise unless every keyword's value is a bool.

    Raises:
        TypeError: If a value is not a bool. The message names the argument.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f'{name}={value!r} of type {type(value).__name__}, allowed: True or False')
