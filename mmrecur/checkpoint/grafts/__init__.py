"""Weights of plain networks in the backbones of this package, one file per family."""

# importing a family's file registers its rule
from mmrecur.checkpoint.grafts import dr_resnet, recnet, resnet_shared, rla_mobilenet, swrn  # noqa: F401
from mmrecur.checkpoint.grafts.graft import graft, register_graft
from mmrecur.checkpoint.grafts.init import GraftInit
from mmrecur.checkpoint.grafts.resnet_shared import graft_shared

__all__ = ['GraftInit', 'graft', 'graft_shared', 'register_graft']
