"""A backbone of this package in the place of another one.

``plan.py`` goes from a config to one with another backbone, by what ``names.py`` says of the new one,
``host.py`` of the old one and the model around it, ``channels.py`` of what reads the maps and
``weights.py`` of what to start from. ``trial.py`` builds the result and takes a training step.
"""

from mmrecur.apis.swap.names import list_backbones
from mmrecur.apis.swap.plan import Swap, plan_swap, swap_backbone

__all__ = ['Swap', 'list_backbones', 'plan_swap', 'swap_backbone']
