"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import ECA, SqueezeExcite
from .checks import check_choice, check_flag, check_int
from .fuse import fold_norm
from .inverted_residual import InvertedResidual
from .residual import Bottleneck, DeepStem
from .rla import RLACell

__all__ = [
    'ECA',
    'Bottleneck',
    'DeepStem',
    'InvertedResidual',
    'RLACell',
    'SqueezeExcite',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
]
