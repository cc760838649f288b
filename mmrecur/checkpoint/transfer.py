"""Moving tensors between layouts, with an account of every key."""

from __future__ import annotations

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
    """What a transfer did: every source and target key stands in it exactly once.

    Attributes:
        copied (dict[str, str]): Target key -> source key.
        transformed (dict[str, tuple[tuple[str, ...], str]]): Target key -> source keys and how. A
            source key that feeds several targets is listed with each.
        initial (dict[str, str]): Target key left at the model's own value -> why.
        unused (dict[str, str]): Source key that went nowhere -> why.
        notes (list[str]): Remarks for the user.
        errors (dict[str, float]): Place in the backbone -> relative error of what was fitted there; empty
            where nothing had to be fitted.
    """

    copied: dict[str, str] = field(default_factory=dict)
    transformed: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types, for JSON."""
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
        """The report as a table; keys that differ in numbers only share a row."""
        rows: Counter[tuple[str, str, str]] = Counter()
        for target, (sources, how) in self.transformed.items():
            origin = f'from {", ".join(map(_pattern, sources))}: ' if sources else ''
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
    """Collects a new state dict for a model, key by key, and accounts for all of them.

    Args:
        source (Mapping[str, Tensor]): Where tensors come from.
        model (nn.Module): A backbone of this package or a model with one; it is not changed.

    Attributes:
        target (dict[str, Tensor]): The model's own state dict.
        backbone (nn.Module): The model's backbone.
        prefix (str): What the backbone's keys start with in the model.

    Raises:
        ValueError: If the backbone is none of this package's or in its inference form.
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
        """Take a tensor as it is."""
        if self._put(target, self.source[source], (source,)):
            self.report.copied[target] = source

    def transform(self, target: str, sources: Sequence[str], tensor: Tensor, how: str) -> None:
        """Take a tensor computed from others."""
        if self._put(target, tensor, sources):
            self.report.transformed[target] = (tuple(sources), how)

    def leave(self, target: str, why: str) -> None:
        """Leave a target tensor as the model has it."""
        self.report.initial[target] = why

    def leave_counters_and_other_parts(self) -> None:
        """Explain targets that no checkpoint of a backbone or classifier has."""
        done = {*self.report.copied, *self.report.transformed, *self.report.initial}
        for key in self.target:
            if key in done:
                continue
            if not key.startswith((self.prefix, 'head.fc.')):
                self.leave(key, 'not part of the backbone')
            elif key.endswith('num_batches_tracked'):
                self.leave(key, 'a counter that old checkpoints lack')

    def drop(self, source: str, why: str) -> None:
        """Leave a source tensor out."""
        self.report.unused[source] = why

    def used_sources(self) -> set[str]:
        """Source keys that went somewhere so far."""
        groups = (sources for sources, _ in self.report.transformed.values())
        return set(self.report.copied.values()).union(*groups)

    def require(self, source: str, family: type[nn.Module], allowed: str) -> None:
        """Raise unless the backbone is of the family that a source's layout is for.

        Args:
            source (str): Name of the layout.
            family (type): The family's class.
            allowed (str): What is allowed, for the message.

        Raises:
            ValueError: If it is of another one.
        """
        if not isinstance(self.backbone, family):
            kind = type(self.backbone).__name__
            raise ValueError(f'source={source!r} with a backbone of type {kind}, allowed: {allowed}')

    def mismatch(self, target: str, wanted: Sequence[int], sources: Sequence[str], tensor: Tensor) -> None:
        """Note a tensor of a wrong shape."""
        self._mismatched.append(
            f'{target} has shape {tuple(wanted)}, {", ".join(sources)} gives {tuple(tensor.shape)}'
        )

    def _put(self, target: str, tensor: Tensor, sources: Sequence[str]) -> bool:
        wanted = self.target[target].shape
        if tensor.shape != wanted:
            self.mismatch(target, wanted, sources, tensor)
            return False
        # a copy: neither a view that keeps a large tensor alive nor an alias of the source
        self._tensors[target] = tensor.detach().clone().contiguous()
        return True

    def finish(self, strict: bool = True) -> tuple[dict[str, Tensor], Report]:
        """Complete the state dict with what the model has.

        Args:
            strict (bool): Raise if a key or shape is not explained; otherwise such keys are reported
                as left at initialisation and unused. Defaults to True.

        Returns:
            tuple[dict[str, Tensor], Report]: A state dict with every key of the model, in its order,
            and the report.

        Raises:
            TransferError: With ``strict``, naming every unexplained key and every wrong shape. Without, if
                nothing at all in the backbone is from the source.
        """
        report = self.report
        used = self.used_sources() | set(report.unused)
        missing = [key for key in self.target if key not in self._tensors and key not in report.initial]
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
        filled = {key for key, (sources, _) in report.transformed.items() if sources} | report.copied.keys()
        if not any(k.startswith(self.prefix) and self._tensors[k].is_floating_point() for k in filled):
            backbone = [key for key in self.target if key.startswith(self.prefix)]
            raise TransferError(
                f'nothing in the source fits the backbone: the source has {_some([*self.source], 3)}; the '
                f'model has {_some(backbone, 3)}'
            )
        for key in missing:
            self.leave(key, 'not explained: missing or of another shape in the source')
        for key in unexpected:
            self.drop(key, 'not explained: the model has no place for it')
        state = {
            key: self._tensors[key] if key in self._tensors else value.detach().clone()
            for key, value in self.target.items()
        }
        return state, report


def _some(keys: Sequence[str], limit: int = 8) -> str:
    shown = ', '.join(keys[:limit])
    return shown if len(keys) <= limit else f'{shown} and {len(keys) - limit} more'
