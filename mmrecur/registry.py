"""Registries of mmrecur, children of MMEngine's root registries with the scope ``mmrecur``.

A config puts the scope in front of a name, as in ``type='mmrecur.RLAResNet'``. This works from inside every
other scope, such as mmdet and mmpretrain. On the first search a registry imports its ``locations``, the
modules that register something in it.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmrecur',
    locations=['mmrecur.models.backbones', 'mmrecur.models.losses', 'mmrecur.models.shortest_path'],
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmrecur', locations=['mmrecur.engine'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmrecur', locations=['mmrecur.datasets'])
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmrecur', locations=['mmrecur.datasets']
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmrecur', locations=['mmrecur.evaluation'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='mmrecur',
    locations=['mmrecur.checkpoint'],
)
