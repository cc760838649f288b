"""The arithmetic: plain ``torch.nn`` layers that need nothing but torch."""

from .activation_checkpoint import checkpoint_step
from .attention import ECA, SqueezeExcite
from .checks import check_choice, check_flag, check_int
from .fuse import fold_norm
from .residual import Bottleneck, DeepStem
from .rla import RLACell
from .soft_sharing import materialise_convs, share_convs, template_banks
from .template_bank import SharedConv, TemplateBank, layer_similarity

__all__ = [
    'ECA',
    'Bottleneck',
    'DeepStem',
    'RLACell',
    'SharedConv',
    'SqueezeExcite',
    'TemplateBank',
    'check_choice',
    'check_flag',
    'check_int',
    'checkpoint_step',
    'fold_norm',
    'layer_similarity',
    'materialise_convs',
    'share_convs',
    'template_banks',
]
