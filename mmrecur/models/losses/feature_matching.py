"""Error between the feature maps of a student and those of a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def matching_error(student_outputs: Any, teacher_outputs: Any) -> Tensor:
    r"""Compute the relative squared error of feature maps, averaged over the outputs.

    .. math:: E = \frac{1}{n} \sum_i \frac{\|s_i - t_i\|^2}{\|t_i\|^2}

    A student whose maps are all zero has an error of 1.

    Args:
        student_outputs (Any): The student's maps: a tensor, or tensors in sequences and dicts, also nested.
        teacher_outputs (Any): The teacher's maps in the same structure. They need no gradient.

    Returns:
        Tensor: Scalar in float32, or in float64 if the maps are.

    Raises:
        TypeError, ValueError: See :func:`matching_errors`.

    Example:
        >>> import torch
        >>> matching_error([torch.ones(1, 2, 4, 4)], [torch.full((1, 2, 4, 4), 2.0)])
        tensor(0.2500)
    """
    return torch.stack(list(matching_errors(student_outputs, teacher_outputs).values())).mean()


def matching_errors(student_outputs: Any, teacher_outputs: Any) -> dict[str, Tensor]:
    """Compute the relative squared error of each feature map, outside autocast.

    Args:
        student_outputs (Any): See :func:`matching_error`.
        teacher_outputs (Any): See :func:`matching_error`.

    Returns:
        dict[str, Tensor]: Scalars by the place of the map, such as ``'neck.0'`` for the first map under the
        key ``'neck'``.

    Raises:
        TypeError: If an output is not a tensor.
        ValueError: If the numbers or the shapes of the outputs differ, or if there are none.

    Example:
        >>> import torch
        >>> maps = torch.ones(1, 2, 4, 4)
        >>> matching_errors(dict(neck=(maps, maps)), dict(neck=(maps, 2 * maps)))
        {'neck.0': tensor(0.), 'neck.1': tensor(0.2500)}
    """
    student, teacher = named_maps(student_outputs), named_maps(teacher_outputs)
    if list(student) != list(teacher) or not student:
        raise ValueError(
            f'the student has {len(student)} outputs ({_listed(student)}), the teacher has {len(teacher)} '
            f'({_listed(teacher)}); allowed: the same, at least one'
        )
    errors = {}
    for name, ours in student.items():
        theirs = teacher[name]
        if ours.shape != theirs.shape:
            raise ValueError(
                f'output {name!r}: the student has shape {tuple(ours.shape)}, the teacher has '
                f'{tuple(theirs.shape)}; allowed: the same shape'
            )
        errors[name] = _relative_error(ours, theirs)
    return errors


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        target = teacher.detach().to(student.device, dtype)
        norm = target.square().sum().clamp(min=torch.finfo(dtype).tiny)
        return (student.to(dtype) - target).square().sum() / norm


def _listed(maps: Mapping[str, Tensor]) -> str:
    return ', '.join(map(repr, maps))


def named_maps(outputs: Any, name: str = '') -> dict[str, Tensor]:
    """Return the tensors in nested sequences and dicts, by their place.

    None is left out, and a sequence with a single entry counts as this entry: stages of RLA networks return
    ``(map, None)`` if they have no recurrent state.

    Args:
        outputs (Any): A tensor, or sequences and dicts of tensors.
        name (str): Prefix of the names. Defaults to none.

    Returns:
        dict[str, Tensor]: Tensors by names such as ``'backbone.3'``.

    Raises:
        TypeError: If anything else is among them.
    """
    if isinstance(outputs, Tensor):
        return {name: outputs}
    if isinstance(outputs, Mapping):
        items = list(outputs.items())
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        items = [(place, value) for place, value in enumerate(outputs) if value is not None]
        if len(items) == 1:
            return named_maps(items[0][1], name)
    else:
        raise TypeError(
            f'output {name!r} is of type {type(outputs).__name__}, allowed: a tensor, or sequences and dicts '
            'of tensors'
        )
    found: dict[str, Tensor] = {}
    for key, value in items:
        found.update(named_maps(value, f'{name}.{key}' if name else str(key)))
    return found


class OutputRecorder:
    """Record the outputs of some submodules of a model.

    Args:
        model (nn.Module): The model.
        names (Sequence[str]): Names of the submodules.

    Attributes:
        active (bool): Whether outputs are recorded at present. Defaults to False.

    Raises:
        ValueError: If the model has no such submodule.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> recorder = OutputRecorder(model, ['0'])
        >>> recorder.active = True
        >>> _ = model(torch.rand(1, 3, 8, 8))
        >>> recorder.outputs()['0'].shape
        torch.Size([1, 4, 8, 8])
        >>> recorder.remove()
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        known = dict(model.named_modules())
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f'{type(model).__name__} has no module {unknown[0]!r}, allowed: names such as '
                f'{", ".join(repr(name) for name in [*known][1:6])}'
            )
        self.active = False
        self._calls: dict[str, list[Any]] = {name: [] for name in names}
        self._handles = [
            known[name].register_forward_hook(lambda module, args, output, name=name: self._add(name, output))
            for name in self._calls
        ]

    def _add(self, name: str, output: Any) -> None:
        if self.active:
            self._calls[name].append(output)

    def outputs(self) -> dict[str, Any]:
        """Return what each submodule has returned since the last :meth:`clear`.

        Returns:
            dict[str, Any]: The output by the name of the submodule; a list if it ran several times or never.
        """
        return {name: calls[0] if len(calls) == 1 else list(calls) for name, calls in self._calls.items()}

    def clear(self) -> None:
        """Drop the recorded outputs and stop recording."""
        self.active = False
        for calls in self._calls.values():
            calls.clear()

    def remove(self) -> None:
        """Detach the recorder from the model."""
        self.clear()
        for handle in self._handles:
            handle.remove()
