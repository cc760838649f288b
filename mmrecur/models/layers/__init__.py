"""Layers of all families, built from ``torch.nn`` alone: importing them needs nothing but torch.

=====================  ===================================================================================
Sub-package            Idea
=====================  ===================================================================================
``common``             Parts that several families share: residual blocks, attention, fusing of norms
``rla``                Recurrent layer aggregation, Zhao et al. 2021
``filter_basis``       Convolutions that share filter bases (ResNet-Shared), Kang and Kim 2021
``template_bank``      Convolutions drawn from template banks (SWRN), Savarese and Maire 2019
``loop``               Blocks in gated loops (DR-ResNet), Guo et al. 2019
``channel_recurrence`` Recurrence along the channels (RecNet), Retsinas et al. 2019
=====================  ===================================================================================
"""

from mmrecur.models.layers.channel_recurrence.conv import ChannelRecurrentConv, RecurrentModule
from mmrecur.models.layers.common import (
    CBAM,
    ECA,
    BasicBlock,
    BlockSequence,
    Bottleneck,
    ChannelClamp,
    ChannelGate,
    DeepStem,
    InvertedResidual,
    PaddedShortcut,
    SqueezeExcite,
    Stage,
    check_choice,
    check_flag,
    check_int,
    check_weight,
    checkpoint_step,
    fuse_norm,
    fuse_norm_of_sum,
    fuse_preactivation,
    pointwise_sum,
    run_step,
)
from mmrecur.models.layers.filter_basis.basis import (
    BasisConv2d,
    FactorizedConv2d,
    FilterBasis,
    orthogonality_penalty,
)
from mmrecur.models.layers.loop.gate import GumbelGate
from mmrecur.models.layers.loop.norm import LoopNorm
from mmrecur.models.layers.loop.recursive_block import RecursiveBlock
from mmrecur.models.layers.rla import (
    RLA_VARIANTS,
    ConvGRU,
    ConvLSTM,
    DenseBlock,
    DenseLayer,
    DualPathBlock,
    GatedRLACell,
    MultiWidthRLACell,
    PostActRLACell,
    PreActBasicBlock,
    PreActBottleneck,
    RLABottleneck,
    RLACell,
    RLAInvertedResidual,
    RLASettings,
    RLAStage,
    RLAXceptionStage,
    SeparableConv,
    Tap,
    Transition,
    UnsharedCells,
    XceptionBlock,
    append_hidden,
    downsample_hidden,
    make_rla_cell,
)
from mmrecur.models.layers.template_bank.bank import TemplateBank, TemplateConv2d, layer_similarity
from mmrecur.models.layers.template_bank.blocks import WideBasicBlock, WideBottleneck
from mmrecur.models.layers.template_bank.share_convs import materialise_convs, share_convs, template_banks

__all__ = [
    'CBAM',
    'ECA',
    'RLA_VARIANTS',
    'BasicBlock',
    'BasisConv2d',
    'BlockSequence',
    'Bottleneck',
    'ChannelClamp',
    'ChannelGate',
    'ChannelRecurrentConv',
    'ConvGRU',
    'ConvLSTM',
    'DeepStem',
    'DenseBlock',
    'DenseLayer',
    'DualPathBlock',
    'FactorizedConv2d',
    'FilterBasis',
    'GatedRLACell',
    'GumbelGate',
    'InvertedResidual',
    'LoopNorm',
    'MultiWidthRLACell',
    'PaddedShortcut',
    'PostActRLACell',
    'PreActBasicBlock',
    'PreActBottleneck',
    'RLABottleneck',
    'RLACell',
    'RLAInvertedResidual',
    'RLASettings',
    'RLAStage',
    'RLAXceptionStage',
    'RecurrentModule',
    'RecursiveBlock',
    'SeparableConv',
    'SqueezeExcite',
    'Stage',
    'Tap',
    'TemplateBank',
    'TemplateConv2d',
    'Transition',
    'UnsharedCells',
    'WideBasicBlock',
    'WideBottleneck',
    'XceptionBlock',
    'append_hidden',
    'check_choice',
    'check_flag',
    'check_int',
    'check_weight',
    'checkpoint_step',
    'downsample_hidden',
    'fuse_norm',
    'fuse_norm_of_sum',
    'fuse_preactivation',
    'layer_similarity',
    'make_rla_cell',
    'materialise_convs',
    'orthogonality_penalty',
    'pointwise_sum',
    'run_step',
    'share_convs',
    'template_banks',
]
