"""An ``SSDHead`` that works in prediction with MMDetection 3.5.1.

It needs MMDetection. A config that uses it sets
``custom_imports = dict(imports=['mmrecur', 'mmrecur.models.heads.ssd_head'])``.
"""

from __future__ import annotations

from mmdet.models.dense_heads import SSDHead as _SSDHead

from mmrecur.registry import MODELS


@MODELS.register_module()
class SSDHead(_SSDHead):
    """MMDetection's ``SSDHead`` with the attribute ``loss_cls``, which prediction reads.

    MMDetection 3.5.1 (the OneDL fork) asks ``loss_cls`` in prediction whether the loss has class channels of
    its own. The original head lacks the attribute, because its loss is a function, and fails with an
    ``AttributeError``. Arguments, parameters and results are the same.
    """

    #: None, because ``loss_by_feat_single`` computes the cross-entropy with hard negatives itself.
    loss_cls = None
