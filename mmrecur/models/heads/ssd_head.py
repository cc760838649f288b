"""MMDetection's SSD head, able to predict.

Needs MMDetection; a config that uses it has
``custom_imports = dict(imports=['mmrecur', 'mmrecur.models.heads.ssd_head'])``.
"""

from __future__ import annotations

from mmdet.models.dense_heads import SSDHead as _SSDHead

from mmrecur.registry import MODELS


@MODELS.register_module()
class SSDHead(_SSDHead):
    """MMDetection's ``SSDHead`` with the attribute that its ``predict`` asks for.

    In its release 3.5.1 (the OneDL fork) dense heads look for a classification loss with class channels of
    its own when they predict. The SSD head has no such module, as its loss is a function, and prediction
    ends with an ``AttributeError``. Arguments, parameters and results are those of MMDetection's.
    """

    #: No module: the loss is the cross-entropy with hard negatives of ``loss_by_feat_single``.
    loss_cls = None
