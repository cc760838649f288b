"""Numbers of the model zoo, counted from the configs.

The README and the metafile of a family state the parameters and the multiply-adds of each config. These
numbers are generated: :func:`update` counts them and rewrites those that differ.

In a metafile the values of ``Parameters`` and ``FLOPs`` are generated. In a README a cell is generated if
its row links a config and the header of its column starts with one of:

=================  ==================================================================
``Parameters``     parameters of the whole model, frozen ones included
``Multiply-adds``  multiply-adds; the average at the target rate for models with gates
``Average``        the same
``Gate after``     the average if the gates stand after the iterations
``All loops``      multiply-adds if every loop runs to its end
=================  ==================================================================

A header that mentions the paper is left alone. A header with a label, such as ``Parameters, CIFAR-10`` or
``Parameters (CIFAR-10)``, refers to the link with that text; otherwise the first link of the row counts. A
cell keeps its unit and its number of decimals. Write ``?`` for a number that has not been counted yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from torch import nn

from mmrecur.analysis.complexity import count_parameters, image_inputs, is_detector, measure
from mmrecur.analysis.loop_complexity import LoopComplexity, measure_loops
from mmrecur.apis.runner import (
    load_config,
)
from mmrecur.apis.specs import build_model
from mmrecur.errors import ToolError

#: Kinds of generated columns by the beginning of their header.
COLUMNS = {
    'Parameters': 'parameters',
    'Multiply-adds': 'average',
    'Average': 'average',
    'Gate after': 'gate_after',
    'All loops': 'all_loops',
}
_LINK = re.compile(r'\[([^\]]*)\]\(([^)]+\.py)\)|`(mm\w+::[^`]+\.py)`')
_NUMBER = re.compile(r'(?P<digits>[\d,]+(?:\.(?P<decimals>\d+))?|\?)(?P<unit> [GM])?')


@dataclass(frozen=True)
class Change:
    """A stated number that differs from the counted one.

    Attributes:
        path (Path): The README or the metafile.
        line (int): Line number, from 1.
        config (str): The config.
        column (str): The column or the key.
        stated (str): The number in the file.
        counted (str): The counted number in the same format.
    """

    path: Path
    line: int
    config: str
    column: str
    stated: str
    counted: str

    def __str__(self) -> str:
        place = f'{self.path}:{self.line}: {self.column} of {self.config}'
        return f'{place}: stated {self.stated}, counted {self.counted}'


class Counter:
    """Count parameters and multiply-adds of configs; each distinct model is built once.

    Args:
        load (Callable): Loads a config by its path or its name, such as ``mmdet::PATH``.
    """

    def __init__(self, load: Callable[[str], Config] = load_config) -> None:
        self.load = load
        self._counts: dict[tuple[str, str], int] = {}

    def __call__(self, config: str, kind: str) -> int:
        """Return a number of a config.

        Args:
            config (str): The config.
            kind (str): ``'parameters'``, ``'average'``, ``'gate_after'`` or ``'all_loops'``.

        Returns:
            int: Parameters or multiply-adds.
        """
        cfg = self.load(config)
        size = None if kind == 'parameters' else input_size(cfg)
        key = f'{cfg.model.to_dict()}{cfg.get("data_preprocessor")}{size}'
        if (key, kind) not in self._counts:
            counts = dict(parameters=_parameters(cfg)) if size is None else _work(cfg, size)
            self._counts.update({(key, name): count for name, count in counts.items()})
        return self._counts[key, kind]


def _build(cfg: Config) -> nn.Module:
    model = cfg.model.to_dict()
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return build_model(model, cfg.get('default_scope'))


def _parameters(cfg: Config) -> int:
    with torch.device('meta'):
        return count_parameters(_build(cfg))[0]


def _work(cfg: Config, size: tuple[int, int]) -> dict[str, int]:
    model = _build(cfg)
    inputs, arguments = image_inputs(model, size)
    if is_detector(model):  # a detector is counted as a whole, with its loops run to their end
        return dict(average=measure(model, inputs, arguments)[''].multiply_adds)
    loops = measure_loops(model, inputs)
    gated = getattr(model.backbone, 'has_gates', False)
    rate = model.backbone.loss_gate.target_rate if gated else 1.0
    after = {name: replace(work, first_gated=1) for name, work in loops.loops.items()}
    return dict(
        average=round(loops.average(rate)),
        gate_after=round(LoopComplexity(loops.fixed, after).average(rate)),
        all_loops=loops.maximum,
    )


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the height and width at which multiply-adds are stated.

    Args:
        cfg (Config): A config with a test pipeline.

    Returns:
        tuple[int, int]: The size of the centre crop of a classifier, 32 x 32 for CIFAR, the fixed size of a
        detector, and 800 x 1280 for a detector that keeps the aspect ratio.

    Raises:
        ToolError: If the config has no images of a known size.
    """
    dataset = cfg.test_dataloader.dataset
    for transform in dataset.get('pipeline', ()):
        if transform['type'].endswith('CenterCrop'):
            return (transform['crop_size'],) * 2
        if transform['type'].endswith('Resize') and 'keep_ratio' in transform:
            width, height = transform['scale']
            return (800, 1280) if transform['keep_ratio'] else (height, width)
    if 'CIFAR' in dataset['type']:
        return 32, 32
    raise ToolError(f'{cfg.filename}: no input size is known for a data set of type {dataset["type"]!r}')


def zoo_files(root: Path) -> list[Path]:
    """Return the metafiles that ``model-index.yml`` lists and the READMEs beside them.

    Args:
        root (Path): Folder of ``model-index.yml``.

    Returns:
        list[Path]: Existing files.
    """
    metafiles = [root / name for name in yaml.safe_load((root / 'model-index.yml').read_text())['Import']]
    readmes = [path.with_name('README.md') for path in metafiles]
    return [path for path in [*metafiles, *readmes] if path.is_file()]


def update(
    path: Path,
    root: Path,
    count: Callable[[str, str], int],
    kinds: Iterable[str] = tuple(COLUMNS.values()),
    write: bool = True,
) -> list[Change]:
    """Compare the numbers of a file with the configs and rewrite those that differ.

    Args:
        path (Path): A README or a metafile.
        root (Path): Folder that the configs of a metafile are relative to.
        count (Callable): Returns a number of a config, as :class:`Counter` does.
        kinds (Iterable[str]): Numbers to count. Defaults to all.
        write (bool): Whether to rewrite the file. Defaults to True.

    Returns:
        list[Change]: Numbers that differed.
    """
    lines = path.read_text().splitlines(keepends=True)
    read = _metafile_numbers(lines, root) if path.suffix == '.yml' else _table_numbers(lines, path.parent)
    kinds, changes = set(kinds), []
    for number in reversed(list(read)):  # from the end, so that earlier numbers keep their place
        if number.kind not in kinds:
            continue
        stated, counted = number.text, number.format(count(number.config, number.kind))
        if stated == counted:
            continue
        changes.append(Change(path, number.line + 1, number.config, number.column, stated, counted))
        line, end = lines[number.line], number.start + len(stated)
        lines[number.line] = line[: number.start] + counted.rjust(len(stated)) + line[end:]
    if write and changes:
        path.write_text(''.join(lines))
    return changes[::-1]


@dataclass(frozen=True)
class _Number:
    """A number in a file, its position, and the config and quantity that it states."""

    line: int
    start: int
    text: str
    config: str
    column: str
    kind: str
    in_table: bool

    def format(self, count: int) -> str:
        if not self.in_table:
            return str(count)
        if self.kind == 'parameters':
            return f'{count:,}'
        match = _NUMBER.fullmatch(self.text)
        unit = match['unit'] or ('' if '10^9' in self.column else ' G')
        decimals = 2 if self.text == '?' else len(match['decimals'] or '')
        return f'{count / (1e6 if unit == " M" else 1e9):.{decimals}f}{unit}'


def _metafile_numbers(lines: list[str], root: Path) -> Iterator[_Number]:
    config = ''
    for index, line in enumerate(lines):
        if match := re.match(r'\s*Config: (\S+)', line):
            config = str(root / match[1])
        if match := re.match(r'\s*(Parameters|FLOPs): (\S+)', line):
            kind = 'parameters' if match[1] == 'Parameters' else 'average'
            yield _Number(index, match.start(2), match[2], config, match[1], kind, in_table=False)


def _table_numbers(lines: list[str], folder: Path) -> Iterator[_Number]:
    headers: list[str] = []
    for index, line in enumerate(lines):
        if not line.startswith('|'):
            headers = []
            continue
        if not headers:
            headers = [cell.strip() for cell in line.split('|')]
            continue
        links = [(label, name or str((folder / path).resolve())) for label, path, name in _LINK.findall(line)]
        start = 0
        for header, cell in zip(headers, line.split('|')):
            kind = _kind(header)
            match = _NUMBER.fullmatch(cell.strip())
            if links and kind and match:
                label = re.search(r'(?:, | \()([^,()]+)\)?$', header)
                config = next((name for text, name in links if label and text == label[1]), links[0][1])
                place = start + len(cell) - len(cell.lstrip())
                yield _Number(index, place, match[0], config, header, kind, in_table=True)
            start += len(cell) + 1


def _kind(header: str) -> str | None:
    if 'paper' in header:
        return None
    return next((kind for name, kind in COLUMNS.items() if header.startswith(name)), None)
