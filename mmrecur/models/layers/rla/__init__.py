"""Recurrent layer aggregation (RLA) and the networks that its paper compares.

Zhao, Fang and Li, *Recurrence along Depth: Deep Convolutional Neural Networks with Recurrent Layer
Aggregation*, NeurIPS 2021, https://arxiv.org/abs/2110.11852. ``cell.py`` holds the equation of the recurrent
path, ``block.py`` the residual blocks that read its state and ``stage.py`` the loop over both.
"""

from mmrecur.models.layers.rla.block import RLABottleneck, RLAInvertedResidual, Tap
from mmrecur.models.layers.rla.cell import RLA_VARIANTS, RLACell, downsample_hidden
from mmrecur.models.layers.rla.dense_block import DenseBlock, DenseLayer, Transition
from mmrecur.models.layers.rla.dual_path_block import DualPathBlock
from mmrecur.models.layers.rla.multi_width_cell import MultiWidthRLACell
from mmrecur.models.layers.rla.other_cells import (
    ConvGRU,
    ConvLSTM,
    GatedRLACell,
    PostActRLACell,
    UnsharedCells,
    make_rla_cell,
)
from mmrecur.models.layers.rla.preact import PreActBasicBlock, PreActBottleneck
from mmrecur.models.layers.rla.settings import RLASettings
from mmrecur.models.layers.rla.stage import RLAStage, append_hidden
from mmrecur.models.layers.rla.xception import RLAXceptionStage, SeparableConv, XceptionBlock

__all__ = [
    'RLA_VARIANTS',
    'ConvGRU',
    'ConvLSTM',
    'DenseBlock',
    'DenseLayer',
    'DualPathBlock',
    'GatedRLACell',
    'MultiWidthRLACell',
    'PostActRLACell',
    'PreActBasicBlock',
    'PreActBottleneck',
    'RLABottleneck',
    'RLACell',
    'RLAInvertedResidual',
    'RLASettings',
    'RLAStage',
    'RLAXceptionStage',
    'SeparableConv',
    'Tap',
    'Transition',
    'UnsharedCells',
    'XceptionBlock',
    'append_hidden',
    'downsample_hidden',
    'make_rla_cell',
]
