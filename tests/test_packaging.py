"""Build the distributions and check their contents, without network access."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCAL = {'build', 'checkpoints', 'data', 'dist', 'outputs', 'work_dirs'}  # git ignores them too


def ignore_local(folder: str, names: list[str]) -> set[str]:
    """Tell ``shutil.copytree`` which files are not part of the sources."""
    top = LOCAL if Path(folder) == ROOT else set()
    never = {n for n in names if n.startswith(('.', '__pycache__')) or n.endswith('.egg-info')}
    return never | (top & set(names))


def run(code_or_module: list[str], cwd: Path) -> str:
    """Runs Python and shows its output if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    result = subprocess.run(
        [sys.executable, *code_or_module], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_wheel(tree: Path, target: Path) -> Path:
    """Builds a wheel of ``tree`` the way ``pip install .`` does."""
    options = ['--no-deps', '--no-build-isolation', '--no-index', '--no-cache-dir', '-q']
    run(['-m', 'pip', 'wheel', *options, '-w', str(target), '.'], cwd=tree)
    (wheel,) = target.glob('*.whl')
    return wheel


def call_backend(hook: str, tree: Path, target: Path) -> Path:
    """Call a hook of the build backend, which returns the name of the built file."""
    target.mkdir()
    code = f'from setuptools import build_meta as b; print(b.{hook}({str(target)!r}))'
    return target / run(['-c', code], cwd=tree).splitlines()[-1]


def list_files(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob('*')}


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree."""
    copy = tmp_path_factory.mktemp('source') / 'mmrecur'
    return Path(shutil.copytree(ROOT, copy, ignore=ignore_local))


@pytest.fixture(scope='module')
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Return the wheel and the changes that its build made in the source tree."""
    before = list_files(tree)
    wheel = build_wheel(tree, tmp_path_factory.mktemp('wheel'))
    return wheel, list_files(tree) ^ before


@pytest.fixture(scope='module')
def metadata(built: tuple[Path, set[str]]):
    """The wheel's METADATA."""
    with zipfile.ZipFile(built[0]) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith('.dist-info/METADATA'))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_has_the_version_of_the_package(built, metadata):
    namespace: dict[str, str] = {}
    exec((ROOT / 'mmrecur' / 'version.py').read_text(), namespace)
    assert metadata['Version'] == namespace['__version__']
    assert built[0].name == f'mmrecur-{namespace["__version__"]}-py3-none-any.whl'


def test_building_a_wheel_leaves_the_source_tree_as_it_was(built):
    assert built[1] == set()


def test_installing_requires_neither_torch_nor_the_openmmlab_stack(metadata):
    stack = re.compile(r'(torch|mm|onedl|opencv)', flags=re.IGNORECASE)
    requirements = metadata.get_all('Requires-Dist')
    for requirement in requirements:
        if stack.match(requirement):
            assert re.search(r'extra == "(mminstall|openmmlab)"', requirement), requirement
    plain = {r for r in requirements if 'extra ==' not in r}
    assert plain == {'numpy', 'rich', 'scipy'}


def test_the_stacks_are_extras_that_never_mix(metadata):
    def names(extra: str) -> set[str]:
        found = (r for r in metadata.get_all('Requires-Dist') if f'extra == "{extra}"' in r)
        return {re.match(r'[\w-]+', requirement).group() for requirement in found}

    originals = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain'}
    forks = {'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmengine', 'onedl-mmpretrain'}
    assert names('openmmlab') == originals
    assert names('mminstall') == forks
    assert names('all') == names('tests') | names('docs') | names('optional')
    assert not names('all') & (originals | forks)


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / 'mmrecur').rglob('*.py') if '.mim' not in path.parts}
    assert not [str(folder) for folder in folders if not (folder / '__init__.py').is_file()]


def test_wheel_carries_the_package_and_what_mim_reads(built, tree):
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
        index = archive.read('mmrecur/.mim/model-index.yml')
    assert index == (ROOT / 'model-index.yml').read_bytes()
    for folder in ('mmrecur', 'configs', 'tools'):
        prefix = '' if folder == 'mmrecur' else 'mmrecur/.mim/'
        sources = {prefix + p.relative_to(tree).as_posix() for p in (tree / folder).rglob('*.py')}
        assert sources and sources <= names
    assert not [n for n in names if n.startswith(('tests/', 'configs/', 'tools/'))]
    assert not [n for n in names if '__pycache__' in n]


def test_sdist_builds_the_same_wheel(built, tree, tmp_path):
    sdist = call_backend('build_sdist', tree, tmp_path / 'sdist')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    (unpacked,) = (tmp_path / 'unpacked').iterdir()
    for name in ('LICENSE', 'Makefile', 'requirements/constraints.txt', 'tests/test_packaging.py'):
        assert (unpacked / name).is_file()
    rebuilt = build_wheel(unpacked, tmp_path / 'wheel')
    with zipfile.ZipFile(built[0]) as first, zipfile.ZipFile(rebuilt) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {i.filename: i.CRC for i in second.infolist()}


def test_editable_install_links_mim_to_the_sources(tree, tmp_path):
    copy = Path(shutil.copytree(tree, tmp_path / 'tree'))
    for attempt in ('first', 'second'):
        call_backend('build_editable', copy, tmp_path / attempt)
        for name in ('configs', 'tools', 'model-index.yml'):
            link = copy / 'mmrecur' / '.mim' / name
            assert link.is_symlink()
            assert link.resolve() == (copy / name).resolve()
            assert not os.path.isabs(os.readlink(link))
