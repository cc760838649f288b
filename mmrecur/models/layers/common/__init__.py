"""Parts that several families share: residual blocks, attention, fusing of norms, low-rank residuals.

They come from He et al. 2016 and Sandler et al. 2018 (residual blocks), Hu et al. 2018
(squeeze-and-excitation), Wang et al. 2020 (ECA) and Woo et al. 2018 (CBAM). Each class cites its paper.
"""

from mmrecur.models.layers.common.activation_checkpoint import checkpoint_step, run_step
from mmrecur.models.layers.common.attention import CBAM, ECA, ChannelGate, SqueezeExcite
from mmrecur.models.layers.common.fast_paths import pointwise_sum
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.fuse_preact import ChannelClamp, fuse_preactivation
from mmrecur.models.layers.common.inverted_residual import InvertedResidual
from mmrecur.models.layers.common.low_rank import LowRankResidual, low_rank_factors
from mmrecur.models.layers.common.residual import BasicBlock, Bottleneck, DeepStem, PaddedShortcut
from mmrecur.models.layers.common.stage import BlockSequence, Stage

__all__ = [
    'CBAM',
    'ECA',
    'BasicBlock',
    'BlockSequence',
    'Bottleneck',
    'ChannelClamp',
    'ChannelGate',
    'DeepStem',
    'InvertedResidual',
    'LowRankResidual',
    'PaddedShortcut',
    'SqueezeExcite',
    'Stage',
    'checkpoint_step',
    'fuse_norm',
    'fuse_norm_of_sum',
    'fuse_preactivation',
    'low_rank_factors',
    'pointwise_sum',
    'run_step',
]
