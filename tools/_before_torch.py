"""Settings of a tool that must precede the import of torch. Scripts import this module first.

By default, waiting OpenMP threads spin. On a busy machine they take the core from the thread that they wait
for, and a training step takes many times as long. On an idle machine, bounding the spin costs nothing. OpenMP
reads the bound when it is loaded. The package itself never changes the settings of a process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import MutableMapping

#: Loop turns for the GNU runtime (about ten microseconds); milliseconds for those of Intel and LLVM.
SETTINGS = {'GOMP_SPINCOUNT': '10000', 'KMP_BLOCKTIME': '1'}

#: A user who sets one of these has chosen how threads wait.
CHOICES = (*SETTINGS, 'OMP_WAIT_POLICY', 'KMP_LIBRARY')


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound how long waiting OpenMP threads spin, unless the user has chosen a policy.

    Args:
        environment (MutableMapping): Environment variables, changed in place. Defaults to those of this
            process.
    """
    if not any(environment.get(name) for name in CHOICES):
        environment.update(SETTINGS)


bound_spinning()
# Libraries print these warnings on import, and users cannot act on them.
for _message in ('Failed to load image Python extension', 'faster_coco_eval is not installed'):
    warnings.filterwarnings('ignore', message=_message)
