"""Template banks: convolutions whose weights are linear combinations of shared templates.

Each layer of a group has a few coefficients of its own; the templates belong to the bank that the group
shares. Layers whose coefficients are parallel compute the same and can be tied into a loop. Savarese and
Maire, *Learning Implicitly Recurrent CNNs Through Parameter Sharing*, ICLR 2019,
https://arxiv.org/abs/1902.09701.
"""

from mmrecur.models.layers.template_bank.bank import TemplateBank, check_banks, check_rows, template_banks
from mmrecur.models.layers.template_bank.blocks import WideBasicBlock, WideBottleneck
from mmrecur.models.layers.template_bank.coefficients import (
    COEFFICIENT_INITS,
    initial_coefficients,
    layer_similarity,
)
from mmrecur.models.layers.template_bank.conv import TemplateConv2d
from mmrecur.models.layers.template_bank.fit import fit_templates
from mmrecur.models.layers.template_bank.share_convs import materialise_convs, share_convs
from mmrecur.models.layers.template_bank.stage import LayerPosition, TemplateStage

__all__ = [
    'COEFFICIENT_INITS',
    'LayerPosition',
    'TemplateBank',
    'TemplateConv2d',
    'TemplateStage',
    'WideBasicBlock',
    'WideBottleneck',
    'check_banks',
    'check_rows',
    'fit_templates',
    'initial_coefficients',
    'layer_similarity',
    'materialise_convs',
    'share_convs',
    'template_banks',
]
