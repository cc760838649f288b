"""Swap the backbone of a config for one of this package.

The modules, in the order in which a swap uses them:

- ``names.py``: from a name such as ``'rla-resnet50'`` to a backbone class and its arguments.
- ``target.py``: find the part of a config whose backbone is swapped, and read that backbone's options.
- ``plugins.py``: the plugin layers that the new backbone keeps.
- ``features.py``: build backbones and compare their feature maps.
- ``start.py``: choose the weights that the new backbone starts from, and check that they fit.
- ``edits.py``: the edits of the config: channels, imports, hooks, optimizer rules, checkpoints.
- ``plan.py``: the complete plan of a swap.
- ``trial.py``: build both models, graft a checkpoint, train one step.
- ``write.py``: the files: a config that inherits from the base, a grafted checkpoint and its report.
- ``report.py``: the printed report.
"""

from mmrecur.apis.swap.names import list_backbones
from mmrecur.apis.swap.plan import Swap, plan_swap, swap_backbone

__all__ = ['Swap', 'list_backbones', 'plan_swap', 'swap_backbone']
