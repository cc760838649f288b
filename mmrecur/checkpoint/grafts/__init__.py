"""Weights of plain networks grafted into the backbones of this package, one file per family."""

# importing a family's file registers its rule
from mmrecur.checkpoint.grafts import (  # noqa: F401
    dr_resnet,
    recnet,
    resnet_shared,
    rla_mobilenet,
    rla_resnet,
    swrn,
)
from mmrecur.checkpoint.grafts.graft import graft, register_graft
from mmrecur.checkpoint.grafts.graft_init import GraftInit

__all__ = ['GraftInit', 'graft', 'register_graft']
