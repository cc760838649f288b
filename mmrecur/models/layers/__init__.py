"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from mmrecur.models.layers.channel_recurrence import ChannelRecurrentConv, RecurrentModule
from mmrecur.models.layers.common.activation_checkpoint import checkpoint_step
from mmrecur.models.layers.common.attention import CBAM, ECA, SqueezeExcite
from mmrecur.models.layers.common.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation
from mmrecur.models.layers.common.inverted_residual import InvertedResidual
from mmrecur.models.layers.common.pointwise_sum import pointwise_sum
from mmrecur.models.layers.common.residual import Bottleneck, DeepStem
from mmrecur.models.layers.common.residual_basic import BasicBlock
from mmrecur.models.layers.common.separable import SeparableConv, XceptionBlock
from mmrecur.models.layers.common.stage import BlockSequence, Stage
from mmrecur.models.layers.common.tap import Tap
from mmrecur.models.layers.filter_basis import (
    BasisConv2d,
    FactorizedConv2d,
    FilterBasis,
    orthogonality_penalty,
)
from mmrecur.models.layers.loop import GumbelGate, LoopBlock, LoopNorm
from mmrecur.models.layers.rla.cell import RLACell
from mmrecur.models.layers.rla.dense_block import DenseBlock
from mmrecur.models.layers.rla.dual_path_block import DualPathBlock
from mmrecur.models.layers.rla.multi_width_cell import MultiWidthRLACell
from mmrecur.models.layers.rla.other_cells import make_rla_cell
from mmrecur.models.layers.template_bank import (
    TemplateBank,
    TemplateConv2d,
    layer_similarity,
    materialise_convs,
    share_convs,
    template_banks,
)

__all__ = [
    'CBAM',
    'ECA',
    'BasicBlock',
    'BlockSequence',
    'Bottleneck',
    'ChannelRecurrentConv',
    'DeepStem',
    'DenseBlock',
    'DualPathBlock',
    'FactorizedConv2d',
    'FilterBasis',
    'GumbelGate',
    'InvertedResidual',
    'LoopBlock',
    'LoopNorm',
    'MultiWidthRLACell',
    'RLACell',
    'RecurrentModule',
    'SeparableConv',
    'TemplateConv2d',
    'BasisConv2d',
    'SqueezeExcite',
    'Stage',
    'Tap',
    'TemplateBank',
    'XceptionBlock',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fuse_norm',
    'fuse_preactivation',
    'layer_similarity',
    'make_rla_cell',
    'materialise_convs',
    'orthogonality_penalty',
    'pointwise_sum',
    'share_convs',
    'template_banks',
]
