"""make and tools/setup_env.sh name missing requirements before they download anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def set_up(tmp_path):
    """Return a function that runs a copy of tools/setup_env.sh that cannot download anything."""
    for name in ('tools/setup_env.sh', 'requirements', 'setup.py', 'pyproject.toml', 'mmrecur/version.py'):
        target = tmp_path / 'tree' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, target)

    def run(**variables):
        environment = os.environ | {
            'PYTHON': sys.executable,
            'VENV': str(tmp_path / 'venv'),
            'PIP_ARGS': '--no-index',
            'PIP_CACHE_DIR': str(tmp_path / 'cache'),
        }
        result = subprocess.run(
            ['bash', 'tools/setup_env.sh'], cwd=tmp_path / 'tree', env=environment | variables,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 1, result.stdout + result.stderr
        return result.stdout, result.stderr

    return run


def test_missing_compiler_is_named_before_pytorch_is_downloaded(set_up):
    printed, error = set_up(CXX='no-such-compiler', CPU_ONLY='1')
    assert 'no C++ compiler (no-such-compiler)' in error
    assert '[1/5]' in printed and '[2/5]' not in printed
    # The environment exists now, and still nothing is downloaded into it.
    printed, error = set_up(CXX='no-such-compiler', CPU_ONLY='1')
    assert 'no C++ compiler (no-such-compiler)' in error and '[2/5]' not in printed


def test_missing_venv_is_named(set_up, tmp_path):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    printed, error = set_up(PYTHON=str(python))
    assert 'lacks the modules venv and ensurepip' in error and '[2/5]' not in printed


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
def test_missing_config_is_named_before_the_set_up(tmp_path):
    command = ['make', 'train', 'CONFIG=configs/nowhere.py', f'VENV={tmp_path / "venv"}']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0 and 'configs/nowhere.py does not exist' in result.stderr
    assert '[1/5]' not in result.stdout and not (tmp_path / 'venv').exists()


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
@pytest.mark.parametrize('policy', [{}, {'OMP_WAIT_POLICY': 'PASSIVE'}, {'GOMP_SPINCOUNT': '5'}])
def test_make_bounds_spinning_unless_the_user_has_chosen(tmp_path, policy):
    makefile = tmp_path / 'Makefile'
    names = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'KMP_BLOCKTIME', 'KMP_LIBRARY')
    shown = ' '.join(f'{name}=$${name}' for name in names)
    makefile.write_text(f'include {ROOT / "Makefile"}\nshow:\n\t@echo {shown}\n')
    # MAKEFLAGS and MAKELEVEL are set where make runs this test; the inner make would report its directory.
    ignored = {*names, 'MAKEFLAGS', 'MFLAGS', 'MAKELEVEL'}
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    result = subprocess.run(
        ['make', '-f', str(makefile), 'show'], cwd=ROOT, env=environment | policy,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = policy or {'GOMP_SPINCOUNT': '10000', 'KMP_BLOCKTIME': '1'}
    assert result.stdout.split() == [f'{name}={expected.get(name, "")}' for name in names]
