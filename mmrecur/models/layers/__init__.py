"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import ECA, SqueezeExcite
from .checks import check_choice, check_flag, check_int
from .dense import DenseBlock
from .dual_path import DualPathBlock
from .filter_basis import FactorizedConv2d, FilterBasis, SharedConv2d, orthogonality_penalty
from .fuse import fold_norm
from .preact_fold import fold_preactivation
from .residual import Bottleneck, DeepStem
from .rla import RLACell
from .rla_widths import MultiWidthRLACell
from .separable import SeparableConv, XceptionBlock

__all__ = [
    'ECA',
    'Bottleneck',
    'DeepStem',
    'DenseBlock',
    'DualPathBlock',
    'FactorizedConv2d',
    'FilterBasis',
    'MultiWidthRLACell',
    'RLACell',
    'SeparableConv',
    'SharedConv2d',
    'SqueezeExcite',
    'XceptionBlock',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
    'fold_preactivation',
    'orthogonality_penalty',
]
