"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import CBAM, ECA, SqueezeExcite
from .channel_recurrent import ChannelRecurrentConv, RecurrentModule
from .checks import check_choice, check_flag, check_int
from .dense import DenseBlock
from .dual_path import DualPathBlock
from .filter_basis import FactorizedConv2d, FilterBasis, SharedConv2d, orthogonality_penalty
from .fuse import fold_norm
from .gate import GumbelGate
from .inverted_residual import InvertedResidual
from .loop_norm import LoopNorm
from .pointwise_sum import pointwise_sum
from .preact_fold import fold_preactivation
from .recursive import RecursiveBlock
from .residual import Bottleneck, DeepStem
from .residual_basic import BasicBlock
from .rla import RLACell
from .rla_cells import make_rla_cell
from .rla_widths import MultiWidthRLACell
from .separable import SeparableConv, XceptionBlock
from .soft_sharing import materialise_convs, share_convs, template_banks
from .stage import BlockSequence, Stage
from .tap import Tap
from .template_bank import SharedConv, TemplateBank, layer_similarity

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
    'LoopNorm',
    'MultiWidthRLACell',
    'RLACell',
    'RecurrentModule',
    'RecursiveBlock',
    'SeparableConv',
    'SharedConv',
    'SharedConv2d',
    'SqueezeExcite',
    'Stage',
    'Tap',
    'TemplateBank',
    'XceptionBlock',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
    'fold_preactivation',
    'layer_similarity',
    'make_rla_cell',
    'materialise_convs',
    'orthogonality_penalty',
    'pointwise_sum',
    'share_convs',
    'template_banks',
]
