"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import ECA, SqueezeExcite
from .checks import check_choice, check_flag, check_int
from .filter_basis import FactorizedConv2d, FilterBasis, SharedConv2d, orthogonality_penalty
from .fuse import fold_norm
from .residual import Bottleneck, DeepStem
from .rla import RLACell

__all__ = [
    'ECA',
    'Bottleneck',
    'DeepStem',
    'FactorizedConv2d',
    'FilterBasis',
    'RLACell',
    'SharedConv2d',
    'SqueezeExcite',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
    'orthogonality_penalty',
]
