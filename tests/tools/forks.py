"""Tools run in forks of a process that has imported the libraries: each fork saves seconds.

A fork differs from a process of its own in what happens on import, and it writes configs unformatted. For
each tool, at least one test starts a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SERVER = """
import json, os, runpy, sys
from functools import cache

answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)  # libraries print on import

import mmengine.config.utils
import yapf.yapflib.yapf_api
from mmengine.hub import get_config

import matplotlib.pyplot, mmdet.apis, mmdet.engine, mmdet.evaluation, mmpretrain.apis, mmpretrain.evaluation
import mmrecur.analysis.benchmark, mmrecur.apis.summary, mmrecur.apis.swap, mmrecur.apis.training
import torch._dynamo

yapf.yapflib.yapf_api.FormatCode = lambda code, **_: (code, True)
mmengine.config.utils.load = cache(mmengine.config.utils.load)
get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
get_config('mmpretrain::resnet/resnet50_8xb32_in1k.py')

for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
else:
    sys.exit()

os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
output = os.open(task['output'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for stream in (1, 2):
    os.dup2(output, stream)
os.chdir(task['cwd'])
os.environ.clear()
os.environ.update(task['env'])
script, *_ = sys.argv = task['argv']
sys.path[:0] = [os.path.dirname(script), *task['env']['PYTHONPATH'].split(os.pathsep)]
runpy.run_path(script, run_name='__main__')
"""


class Forks:
    """A process whose forks run scripts, one at a time."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', SERVER],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def run(self, argv: list[str], output: str, cwd: Path, env: dict[str, str]) -> int:
        """Run a script and return its exit code, or minus the signal that ended it."""
        task = dict(argv=argv, output=output, cwd=str(cwd), env=env)
        self.process.stdin.write(f'{json.dumps(task)}\n')
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait(60)
