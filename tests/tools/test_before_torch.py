"""tools/_before_torch.py: every tool bounds the spinning of OpenMP threads before it imports torch."""

import ast
import os
import subprocess
import sys

import pytest

from tests.tool_module import ROOT, load_tool

TOOLS = sorted(path for path in (ROOT / 'tools').rglob('*.py') if not path.name.startswith('_'))


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.stem)
def test_tool_imports_it_first(path):
    imports = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert imports[0].module == '__future__'
    assert [alias.name for alias in imports[1].names] == ['_before_torch']


@pytest.mark.parametrize('folder', ['', 'analysis_tools', 'dataset_converters', 'model_converters'])
def test_it_sets_the_environment_without_importing_torch(folder):
    code = (
        'import os, sys, _before_torch\n'
        "assert 'torch' not in sys.modules\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))\n"
    )

    def run(**policy):
        names = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'KMP_BLOCKTIME', 'KMP_LIBRARY')
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment['PYTHONPATH'] = str(ROOT / 'tools' / folder)
        command = [sys.executable, '-S', '-c', code]
        return subprocess.check_output(command, env=environment | policy, text=True).split()

    assert run() == ['10000', '1']
    assert run(GOMP_SPINCOUNT='7') == ['7', 'None']


def test_the_users_policy_stands():
    bound = load_tool('_before_torch.py').bound_spinning
    for name, value in (('OMP_WAIT_POLICY', 'ACTIVE'), ('KMP_BLOCKTIME', '0'), ('KMP_LIBRARY', 'throughput')):
        environment = {name: value}
        bound(environment)
        assert environment == {name: value}
