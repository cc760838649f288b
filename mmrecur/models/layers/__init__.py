"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import CBAM, ECA, SqueezeExcite
from .checks import check_choice, check_flag, check_int
from .fuse import fold_norm
from .residual import Bottleneck, DeepStem
from .rla import RLACell
from .rla_cells import make_rla_cell

__all__ = [
    'CBAM',
    'ECA',
    'Bottleneck',
    'DeepStem',
    'RLACell',
    'SqueezeExcite',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
    'make_rla_cell',
]
