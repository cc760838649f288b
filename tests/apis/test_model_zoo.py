"""READMEs and metafiles state the numbers of the configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmrecur.apis.model_zoo import COLUMNS, Counter, input_size, update, zoo_files
from mmrecur.apis.runner import load_config
from tests.helpers.configs import load
from tests.tool_module import load_tool

ROOT = Path(__file__).parents[2]
#: Folder of a family -> its README and metafile, whose models are built once.
FILES: dict[str, list[Path]] = {}
for _path in zoo_files(ROOT):
    FILES.setdefault(_path.parent.relative_to(ROOT).as_posix(), []).append(_path)


def load_cached(name: str) -> Config:
    return load_config(name) if '::' in name else load(str(Path(name).relative_to(ROOT)))


COUNTER = Counter(load_cached)


@pytest.mark.parametrize('name', FILES)
def test_parameters_are_those_of_the_configs(name: str) -> None:
    changes = [c for path in FILES[name] for c in update(path, ROOT, COUNTER, ['parameters'], write=False)]
    assert not changes, '\n'.join(map(str, changes))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', FILES)
def test_multiply_adds_are_those_of_the_configs(name: str) -> None:
    kinds = set(COLUMNS.values()) - {'parameters'}
    changes = [c for path in FILES[name] for c in update(path, ROOT, COUNTER, kinds, write=False)]
    assert not changes, '\n'.join(map(str, changes))


TABLE = """\
| M | Parameters, small | Parameters (large) | Multiply-adds | Average (10^9) | Parameters (paper) | Configs |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
| A | 1 | 2,000 | ? | 0.10 | 5 | [small](./a.py), [large](./b.py) |

| Multiply-adds | without a config |
| ---: | --- |
| 9 | |
"""
METAFILE = """\
  - Name: a
    Config: configs/a.py
    Metadata:
      FLOPs: 7
      Parameters: ?
"""


def count(config: str, kind: str) -> int:
    return {'a': 1_000, 'b': 2_000}[Path(config).stem] * (1 if kind == 'parameters' else 1_000_000)


def test_numbers_of_a_table_are_updated(tmp_path: Path) -> None:
    path = tmp_path / 'README.md'
    path.write_text(TABLE)
    changes = update(path, tmp_path, count)
    assert [(c.line, c.column, c.stated, c.counted) for c in changes] == [
        (3, 'Parameters, small', '1', '1,000'),
        (3, 'Multiply-adds', '?', '1.00 G'),
        (3, 'Average (10^9)', '0.10', '1.00'),
    ]
    assert path.read_text().splitlines()[2] == (
        '| A | 1,000 | 2,000 | 1.00 G | 1.00 | 5 | [small](./a.py), [large](./b.py) |'
    )
    assert path.read_text().splitlines()[-1] == '| 9 | |'
    assert update(path, tmp_path, count) == []


def test_numbers_of_a_metafile_are_updated(tmp_path: Path) -> None:
    path = tmp_path / 'metafile.yml'
    path.write_text(METAFILE)
    changes = update(path, tmp_path, count, ['parameters'], write=False)
    assert [(c.line, c.stated, c.counted) for c in changes] == [(5, '?', '1000')]
    assert path.read_text() == METAFILE
    update(path, tmp_path, count)
    assert 'FLOPs: 1000000000\n' in path.read_text() and 'Parameters: 1000\n' in path.read_text()


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('configs/rla/rla-resnet50_4xb64_in1k.py', (224, 224)),
        ('configs/rla/preact-resnet110_1xb128_cifar10.py', (32, 32)),
        ('configs/rla/faster-rcnn_rla-r50_fpn_1x_coco.py', (800, 1280)),
        ('configs/rla/ssdlite_rla-mobilenetv2-scratch_8xb24-600e_coco.py', (320, 320)),
    ],
)
def test_input_sizes(name: str, size: tuple[int, int]) -> None:
    assert input_size(load(name)) == size


def test_the_command_reports_a_number_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = ROOT / 'configs/rla/preact-resnet110_1xb128_cifar10.py'
    path = tmp_path / 'README.md'
    path.write_text(f'| Parameters | Config |\n| ---: | --- |\n| 1,730,555 | [config]({config}) |\n')
    tool = load_tool('update_model_zoo.py')
    assert tool.main([str(path), '--check', '--parameters-only']) == 1
    assert 'stated 1,730,555, counted 1,730,554' in capsys.readouterr().out
    assert tool.main([str(path), '--parameters-only']) == 0 and ' 1,730,554 ' in path.read_text()
    assert tool.main([str(path), '--check', '--parameters-only']) == 0
