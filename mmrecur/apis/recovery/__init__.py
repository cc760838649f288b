"""Recover the accuracy that a model loses when its backbone is swapped.

The modules, in the order in which a recovery uses them:

- ``sources.py``, ``images.py``: find images without labels and preprocess them as in a test.
- ``budget.py``: choose what each stage shares under a budget of parameters.
- ``outputs.py``: choose the outputs of teacher and student that are compared, and measure their errors.
- ``recover.py``: the stages of a recovery; ``matcher.py``: one training step; ``state.py``: saving it.
- ``report.py``: the report.
- ``validation.py``: validate a model with a config's data, without a runner.
- ``swapped.py``: recover the model of a swap; ``progress.py`` and ``summary.py`` show it.
"""

from mmrecur.apis.recovery.recover import recover
from mmrecur.apis.recovery.report import RecoveryReport
from mmrecur.models.norms import reestimate_norms

__all__ = ['RecoveryReport', 'recover', 'reestimate_norms']
