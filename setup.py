"""Packaging of mmrecur.

Metadata live here rather than in ``pyproject.toml`` because the requirement files are shared with
``tools/setup_env.sh``. Configs, tools and the model index travel in ``mmrecur/.mim``, where MIM and
``mmengine.hub`` look for them: copied into a wheel, linked in an editable install.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


def read_version() -> str:
    """Reads ``__version__`` without importing the package, which needs MMEngine.

    Returns:
        str: The version.

    Raises:
        RuntimeError: If ``mmrecur/version.py`` assigns no ``__version__``.
    """
    text = (ROOT / 'mmrecur' / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError("mmrecur/version.py has no line of the form __version__ = '1.2.3'")
    return match.group(1)


def read_requirements(name: str) -> list[str]:
    """Reads a requirement file.

    Args:
        name (str): Stem of a file in ``requirements/``.

    Returns:
        list[str]: Its requirements, without comments.
    """
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    stripped = (re.sub(r'(^|\s)#.*$', '', line).strip() for line in lines)
    return [line for line in stripped if line]


def read_long_description() -> str:
    """Reads the README, which a partial checkout may lack.

    Returns:
        str: Its text, or an empty string.
    """
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.is_file() else ''


class BuildPyWithMim(build_py):
    """``build_py`` that also provides ``mmrecur/.mim``."""

    def run(self) -> None:
        """Builds the package, then adds what belongs into ``mmrecur/.mim``."""
        super().run()
        if getattr(self, 'editable_mode', False):
            self._link(ROOT / 'mmrecur' / '.mim')
        else:
            self._copy(Path(self.build_lib) / 'mmrecur' / '.mim')

    @staticmethod
    def _link(target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in MIM_CONTENT:
            (target / name).symlink_to(Path('..', '..', name))

    @staticmethod
    def _copy(target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__', '*.py[cod]', '.*')
                shutil.copytree(source, target / name, ignore=ignored)
            else:
                shutil.copy2(source, target / name)


def build_options() -> dict[str, dict[str, str]]:
    """Sends what a wheel is assembled from to a temporary directory.

    Building in the source tree would leave ``build/`` and ``mmrecur.egg-info/`` there, and files
    since deleted from the sources would come back in the next wheel through ``build/lib``.

    Returns:
        dict[str, dict[str, str]]: Options for ``setup``. Empty for commands that need the usual
            places, such as ``sdist``.
    """
    if not {'bdist_wheel', 'dist_info', 'egg_info'} & set(sys.argv[1:]) or 'sdist' in sys.argv[1:]:
        return {}
    scratch = tempfile.mkdtemp(prefix='mmrecur-build-')
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return {
        'build': {'build_base': os.path.join(scratch, 'build')},
        'egg_info': {'egg_base': scratch},
    }


# "all" leaves the two alternative OpenMMLab stacks out: a user has one of them already.
EXTRAS = {name: read_requirements(name) for name in ('tests', 'docs', 'optional')}
EXTRAS['all'] = sorted(set().union(*EXTRAS.values()))
EXTRAS['mminstall'] = read_requirements('mminstall')
EXTRAS['openmmlab'] = read_requirements('openmmlab')

setup(
    name='mmrecur',
    version=read_version(),
    description='Recurrent weight-sharing CNN backbones for the OpenMMLab libraries',
    long_description=read_long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='computer vision, object detection, image classification, recurrent, weight sharing',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmrecur', 'mmrecur.*']),
    include_package_data=True,
    zip_safe=False,
    install_requires=read_requirements('runtime'),
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildPyWithMim},
    options=build_options(),
)
