"""The order of imports between packages, what the layers need, and the length of files and functions.

Test modules do not import from each other: what several use is in ``tests/helpers``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: From top to bottom. A module imports only from its own row and from the rows below it.
ORDER = (
    ('mmrecur.apis.recovery',),
    ('mmrecur.apis.swap',),
    ('mmrecur.apis',),
    ('mmrecur.analysis',),
    ('mmrecur.engine',),
    ('mmrecur.checkpoint',),
    ('mmrecur.models.backbones', 'mmrecur.models.heads', 'mmrecur.models.shortest_path'),
    ('mmrecur.models.losses',),
    ('mmrecur.models.norms', 'mmrecur.models.deployable'),
    ('mmrecur.models.layers',),
    ('mmrecur.models.layers.common',),
    ('mmrecur.datasets', 'mmrecur.evaluation'),
    ('mmrecur.checks', 'mmrecur.compat', 'mmrecur.errors', 'mmrecur.registry', 'mmrecur.version'),
)
#: Front doors, which offer names from above.
EXEMPT = {'mmrecur', 'mmrecur.apis', 'mmrecur.models.layers'}

MAX_FILE_LINES = 400
#: Without the docstring, which may be longer than the code that it explains.
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


SOURCES = {module_name(path): path for path in sorted((ROOT / 'mmrecur').rglob('*.py'))}
TOOLS = sorted((ROOT / 'tools').rglob('*.py'))
TESTS = sorted((ROOT / 'tests').rglob('*.py'))


def rank(module: str) -> int | None:
    """Return the row of ``ORDER`` with the longest prefix of ``module``, or None for the root package."""
    found = [
        (len(package), row)
        for row, packages in enumerate(ORDER)
        for package in packages
        if f'{module}.'.startswith(f'{package}.')
    ]
    return max(found)[1] if found else None


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of every import of this package, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: relative import'
            within = [f'{node.module}.{alias.name}' for alias in node.names]
            names = [name if name in SOURCES else node.module for name in within]
        else:
            continue
        for name in names:
            if name == 'mmrecur' or name.startswith('mmrecur.'):
                yield node.lineno, name


def test_every_module_has_a_place_in_the_order() -> None:
    without = {module for module in SOURCES if rank(module) is None}
    assert without == {'mmrecur', 'mmrecur.models'}


def test_packages_import_only_from_those_below() -> None:
    wrong = [
        f'{path.relative_to(ROOT)}:{line} imports {name}'
        for module, path in SOURCES.items()
        if module not in EXEMPT
        for line, name in imported(path)
        if rank(name) is not None and rank(name) < rank(module)
    ]
    assert not wrong, '\n'.join(wrong)


def test_nothing_imports_from_a_test_module() -> None:
    wrong = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                folder = 'tests.' if node.level else ''
                names = [f'{folder}{node.module or ""}.{alias.name}' for alias in node.names]
            else:
                continue
            wrong += [
                f'{path.relative_to(ROOT)}:{node.lineno} imports {name}'
                for name in names
                if name.startswith(('tests.', 'test_')) and re.search(r'(^|\.)test_', name)
            ]
    assert not wrong, '\n'.join(wrong)


ONLY_TORCH = """
INSTALLED = set()
import sys
from importlib.abc import MetaPathFinder

from importlib.metadata import packages_distributions

import torch
import torch._dynamo  # layers ask it whether they are compiled

NEEDED_BY_TORCH = {name.partition('.')[0] for name in sys.modules}
BLOCKED = set(packages_distributions()) - NEEDED_BY_TORCH - {'mmrecur'} - INSTALLED
assert {'cv2', 'mmcv', 'mmdet', 'mmpretrain', 'rich'} <= BLOCKED

class OnlyTorch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, OnlyTorch())

import mmrecur.models.layers as layers

assert all(hasattr(layers, name) for name in layers.__all__)
packages = 'registry', 'models.backbones', 'models.losses', 'engine', 'checkpoint', 'apis', 'analysis'
loaded = [m for m in sys.modules if m.startswith(tuple(f'mmrecur.{package}' for package in packages))]
print(loaded)
"""

# From the lowest package to the highest, so that no package has been imported for one above it.
FROM_A_CONFIG = """
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS, WEIGHT_INITIALIZERS
from mmengine.utils import import_modules_from_strings

import_modules_from_strings(['mmrecur'])
for registry, name in (
    (TRANSFORMS, 'CenteredCutout'),
    (DATASETS, 'ShortestPaths'),
    (METRICS, 'PixelF1'),
    (MODELS, 'OrthogonalityLoss'),
    (MODELS, 'RLAResNet'),
    (MODELS, 'ShortestPathNet'),
    (WEIGHT_INITIALIZERS, 'Graft'),
    (WEIGHT_INITIALIZERS, 'PluginInit'),
    (HOOKS, 'AuxiliaryLossHook'),
):
    assert registry.get(f'mmrecur.{name}') is not None, name
print(type(MODELS.build(dict(type='mmrecur.RLAResNet', depth=50))).__name__)
"""


def python(code: str) -> str:
    """Run code in a fresh process and return what it prints."""
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_layers_need_torch_only() -> None:
    assert python(ONLY_TORCH) == '[]'


def test_mmengine_that_misses_a_dependency_is_an_error() -> None:
    code = ONLY_TORCH.replace('set()', "{'mmengine'}", 1)
    with pytest.raises(AssertionError, match='ModuleNotFoundError'):
        python(code)


def test_custom_import_of_the_package_registers_everything() -> None:
    assert python(FROM_A_CONFIG) == 'RLAResNet'


@pytest.mark.parametrize(
    'path', [*SOURCES.values(), *TOOLS, *TESTS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f'{node.name} has {lines} lines'
