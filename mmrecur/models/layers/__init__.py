"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import CBAM, ECA, SqueezeExcite
from .checks import check_choice, check_flag, check_int
from .dense import DenseBlock
from .dual_path import DualPathBlock
from .fuse import fold_norm
from .gate import GumbelGate
from .inverted_residual import InvertedResidual
from .loop_norm import LoopNorm
from .preact_fold import fold_preactivation
from .recursive import RecursiveBlock
from .residual import Bottleneck, DeepStem
from .residual_basic import BasicBlock
from .rla import RLACell
from .rla_cells import make_rla_cell
from .rla_widths import MultiWidthRLACell
from .separable import SeparableConv, XceptionBlock

__all__ = [
    'CBAM',
    'ECA',
    'BasicBlock',
    'Bottleneck',
    'DeepStem',
    'DenseBlock',
    'DualPathBlock',
    'GumbelGate',
    'InvertedResidual',
    'LoopNorm',
    'MultiWidthRLACell',
    'RLACell',
    'RecursiveBlock',
    'SeparableConv',
    'SqueezeExcite',
    'XceptionBlock',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
    'fold_preactivation',
    'make_rla_cell',
]
