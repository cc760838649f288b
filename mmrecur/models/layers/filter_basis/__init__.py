"""Filter bases that the convolutions of a stage share.

Instead of filters of its own, a convolution applies a small basis of filters that all blocks of the stage
have in common, followed by a 1x1 convolution with its own coefficients. Kang and Kim, *Deeply Shared Filter
Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS 2021, https://arxiv.org/abs/2006.05066.
"""

from mmrecur.models.layers.filter_basis.basis import BasisConv2d, FilterBasis, orthogonal_init
from mmrecur.models.layers.filter_basis.dense import BasisDenseLayer, PoolingTransition
from mmrecur.models.layers.filter_basis.factorized import INFERENCE_FORMS, FactorizedConv2d
from mmrecur.models.layers.filter_basis.grouped import BasisResNeXtBlock, GroupedBasisConv2d
from mmrecur.models.layers.filter_basis.penalty import orthogonality_penalty
from mmrecur.models.layers.filter_basis.stage import BasisStage, group_by_filter_size, share_convolutions

__all__ = [
    'INFERENCE_FORMS',
    'BasisConv2d',
    'BasisDenseLayer',
    'BasisResNeXtBlock',
    'BasisStage',
    'FactorizedConv2d',
    'FilterBasis',
    'GroupedBasisConv2d',
    'PoolingTransition',
    'group_by_filter_size',
    'orthogonal_init',
    'orthogonality_penalty',
    'share_convolutions',
]
