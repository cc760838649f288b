"""What a tool sets before it imports torch. Scripts import this module first.

The package itself leaves the settings of a process alone. OpenMP reads its own when it is loaded: waiting
threads spin. While something else runs on the machine they take the core from the thread that they wait
for, and a training step takes many times as long. A bounded spin costs nothing otherwise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import MutableMapping

#: Turns in a loop for GNU's runtime (some ten microseconds), milliseconds for Intel's and LLVM's.
SETTINGS = {'GOMP_SPINCOUNT': '10000', 'KMP_BLOCKTIME': '1'}

#: Whoever sets one of these has chosen how threads wait.
CHOICES = (*SETTINGS, 'OMP_WAIT_POLICY', 'KMP_LIBRARY')


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound how long waiting OpenMP threads spin, unless the user has chosen a policy.

    Args:
        environment (MutableMapping): Changed in place. Defaults to this process's.
    """
    if not any(environment.get(name) for name in CHOICES):
        environment.update(SETTINGS)


bound_spinning()
# What libraries say when they are imported, and nobody can act on.
for _message in ('Failed to load image Python extension', 'faster_coco_eval is not installed'):
    warnings.filterwarnings('ignore', message=_message)
