"""Transfer of tensors from one state dict to another, with a report on every key."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmrecur.errors import TransferError


@dataclass
class Report:
    """Result of a transfer, in which every target key and every source key is listed.

    Attributes:
        copied (dict[str, str]): Source key by target key.
        transformed (dict[str, tuple[tuple[str, ...], str]]): Source keys and method by target key. A source
            key that fills several targets is listed with each.
        initial (dict[str, str]): Reasons by the target key of tensors that keep the model's own values.
        unused (dict[str, str]): Reasons by the source key of tensors that are not used.
        notes (list[str]): Notes for the user.
        errors (dict[str, float]): Relative error of each fit by its name in the backbone; empty if nothing
            was fitted.
    """

    copied: dict[str, str] = field(default_factory=dict)
    transformed: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types for JSON."""
        return {
            'copied': dict(self.copied),
            'transformed': {
                target: {'sources': list(sources), 'how': how}
                for target, (sources, how) in self.transformed.items()
            },
            'initial': dict(self.initial),
            'unused': dict(self.unused),
            'notes': list(self.notes),
            'errors': dict(self.errors),
        }

    def __str__(self) -> str:
        """Return the report as a table in which keys that differ only in numbers share a row."""
        rows: Counter[tuple[str, str, str]] = Counter()
        for target, (sources, how) in self.transformed.items():
            patterns = dict.fromkeys(map(_pattern, sources))
            origin = f'from {", ".join(patterns)}: ' if sources else ''
            rows['transformed', _pattern(target), f'{origin}{how}'] += 1
        for target, why in self.initial.items():
            rows['at initialisation', _pattern(target), why] += 1
        for source, why in self.unused.items():
            rows['unused', _pattern(source), why] += 1
        table = Table('what', 'keys', 'number', 'how or why', title='Checkpoint transfer')
        table.add_row('copied', 'as named in the source', str(len(self.copied)), '')
        for (what, pattern, why), count in rows.items():
            table.add_row(what, pattern, str(count), why)
        console = Console(width=118, color_system=None, markup=False)
        with console.capture() as capture:
            console.print(table)
            for note in self.notes:
                console.print(f'Note: {note}')
        return capture.get().rstrip()


def _pattern(key: str) -> str:
    return re.sub(r'(?<=\.)\d+(?=\.)|(?<=layer)\d+', '*', key)


class Transfer:
    """Builds a new state dict for a model key by key and reports every key.

    Args:
        source (Mapping[str, Tensor]): Tensors to transfer, by name.
        model (nn.Module): A backbone of this package or a model with one. It is not changed.

    Attributes:
        target (dict[str, Tensor]): The model's own state dict.
        backbone (nn.Module): The model's backbone.
        prefix (str): Prefix of the backbone's keys in the model.
        report (Report): Report on the keys so far.

    Raises:
        ValueError: If the backbone is not from this package or is in its inference form.
    """

    def __init__(self, source: Mapping[str, Tensor], model: nn.Module) -> None:
        self.source = source
        self.target = model.state_dict()
        self.backbone = getattr(model, 'backbone', model)
        self.prefix = '' if self.backbone is model else 'backbone.'
        if not hasattr(self.backbone, 'deployed'):
            kind = type(self.backbone).__name__
            raise ValueError(f'model has a backbone of type {kind}, allowed: a backbone of mmrecur')
        if self.backbone.deployed:
            raise ValueError('model is in its inference form, allowed: a model before switch_to_deploy()')
        self.report = Report()
        self._tensors: dict[str, Tensor] = {}
        self._mismatched: list[str] = []

    def copy(self, target: str, source: str) -> None:
        """Fill a target with a source tensor.

        Args:
            target (str): Key in the model.
            source (str): Key in the source.
        """
        if self._put(target, self.source[source], (source,)):
            self.report.copied[target] = source

    def transform(self, target: str, sources: Sequence[str], tensor: Tensor, how: str) -> None:
        """Fill a target with a tensor computed from source tensors. An earlier value is replaced.

        Args:
            target (str): Key in the model.
            sources (Sequence[str]): Keys in the source; empty if the tensor is a constant.
            tensor (Tensor): The value.
            how (str): Explanation for the report.
        """
        if self._put(target, tensor, sources):
            self.report.copied.pop(target, None)
            self.report.initial.pop(target, None)
            self.report.transformed[target] = (tuple(sources), how)

    def snapshot(self) -> tuple[dict[str, Tensor], Report]:
        """Return the values and the report so far, for :meth:`restore`."""
        return dict(self._tensors), copy.deepcopy(self.report)

    def restore(self, snapshot: tuple[dict[str, Tensor], Report]) -> None:
        """Return to an earlier state."""
        self._tensors, self.report = snapshot

    def leave(self, target: str, why: str) -> None:
        """Keep the model's own value of a target, for the reason given."""
        self.report.initial[target] = why

    def leave_counters_and_other_parts(self) -> None:
        """Keep targets outside the backbone and classifier, and counters, if they are not filled yet."""
        done = {*self.report.copied, *self.report.transformed, *self.report.initial}
        for key in self.target:
            if key in done:
                continue
            if not key.startswith((self.prefix, 'head.fc.')):
                self.leave(key, 'not part of the backbone')
            elif key.endswith('num_batches_tracked'):
                self.leave(key, 'a counter that old checkpoints lack')

    def drop(self, source: str, why: str) -> None:
        """Leave out a source tensor, for the reason given."""
        self.report.unused[source] = why

    def used_sources(self) -> set[str]:
        """Return the source keys that have filled a target so far."""
        groups = (sources for sources, _ in self.report.transformed.values())
        return set(self.report.copied.values()).union(*groups)

    def require(self, source: str, family: type[nn.Module], allowed: str) -> None:
        """Raise if the backbone is not an instance of the class that a source is for.

        Args:
            source (str): Name of the source, see :func:`convert`.
            family (type): Class of the backbone.
            allowed (str): Allowed backbones, for the message.

        Raises:
            ValueError: If the backbone is of another class.
        """
        if not isinstance(self.backbone, family):
            kind = type(self.backbone).__name__
            raise ValueError(f'source={source!r} with a backbone of type {kind}, allowed: {allowed}')

    def mismatch(self, target: str, wanted: Sequence[int], sources: Sequence[str], tensor: Tensor) -> None:
        """Record a tensor of the wrong shape, which :meth:`finish` reports.

        Args:
            target (str): Key in the model.
            wanted (Sequence[int]): The right shape.
            sources (Sequence[str]): Keys in the source.
            tensor (Tensor): The tensor.
        """
        self._mismatched.append(
            f'{target} has shape {tuple(wanted)}, {", ".join(sources)} gives {tuple(tensor.shape)}'
        )

    def _put(self, target: str, tensor: Tensor, sources: Sequence[str]) -> bool:
        wanted = self.target[target].shape
        if tensor.shape != wanted:
            self.mismatch(target, wanted, sources, tensor)
            return False
        # the copy neither keeps a larger tensor alive nor shares memory with the source
        self._tensors[target] = tensor.detach().clone().contiguous()
        return True

    def finish(self, strict: bool = True) -> tuple[dict[str, Tensor], Report]:
        """Complete the state dict with the model's own values.

        Args:
            strict (bool): Raise if a key or shape is not explained. Otherwise the keys are reported as left
                at initialisation or unused. Defaults to True.

        Returns:
            tuple[dict[str, Tensor], Report]: A state dict with every key of the model in the model's order,
            and the report.

        Raises:
            TransferError: If no tensor of the backbone comes from the source or, with ``strict``, if any key
                or shape is not explained. The message names them.
        """
        used = self.used_sources() | set(self.report.unused)
        missing = [key for key in self.target if key not in self._tensors and key not in self.report.initial]
        unexpected = [key for key in self.source if key not in used]
        if strict and (missing or unexpected or self._mismatched):
            problems = {
                'wrong shapes': self._mismatched,
                'missing in the source': missing,
                'unexpected in the source': unexpected,
            }
            raise TransferError(
                'the source does not fit the model: '
                + '; '.join(f'{name}: {_some(keys)}' for name, keys in problems.items() if keys)
            )
        self._require_weights()
        for key in missing:
            self.leave(key, 'not explained: missing or of another shape in the source')
        for key in unexpected:
            self.drop(key, 'not explained: the model has no place for it')
        state = {
            key: self._tensors[key] if key in self._tensors else value.detach().clone()
            for key, value in self.target.items()
        }
        return state, self.report

    def _require_weights(self) -> None:
        """Raise if no weight of the backbone comes from the source."""
        transformed = self.report.transformed.items()
        filled = {key for key, (sources, _) in transformed if sources} | self.report.copied.keys()
        if not any(k.startswith(self.prefix) and self._tensors[k].is_floating_point() for k in filled):
            backbone = [key for key in self.target if key.startswith(self.prefix)]
            raise TransferError(
                f'nothing in the source fits the backbone: the source has {_some([*self.source], 3)}; the '
                f'model has {_some(backbone, 3)}'
            )


def _some(keys: Sequence[str], limit: int = 8) -> str:
    shown = ', '.join(keys[:limit])
    return shown if len(keys) <= limit else f'{shown} and {len(keys) - limit} more'
