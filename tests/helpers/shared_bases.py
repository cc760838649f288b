"""Networks with shared filter bases and their plain counterparts."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrecur.models.backbones import DenseNetShared, ResNetShared, SharedBasisBackbone
from tests.helpers import randomise_norms


def plain(kind: type, **arguments) -> SharedBasisBackbone:
    torch.manual_seed(1)
    model = kind(**arguments)
    randomise_norms(model)
    return model


def error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    pairs = zip(actual, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


SMALL = dict(depth=18, base_channels=4)


#: With one block a stage that shares, two convolutions have 8 filters, doubled from stage to stage.
FULL_RANK = {
    'one basis of all filters': (ResNetShared, dict(bases=1, shared_rank=8, unique_rank=0, **SMALL), SMALL),
    'two bases': (ResNetShared, dict(bases=2, shared_rank=4, unique_rank=0, **SMALL), SMALL),
    'the rest in unique ones': (ResNetShared, dict(bases=1, shared_rank=3, unique_rank=4, **SMALL), SMALL),
    'more than needed': (ResNetShared, dict(bases=1, shared_rank=9, unique_rank=2, **SMALL), SMALL),
    'densenet': (
        DenseNetShared,
        dict(shared_rank=72, unique_rank=1, growth_rate=2, stem_channels=8, out_indices=(0, 1)),
        dict(growth_rate=2, stem_channels=8, out_indices=(0, 1)),
    ),
}
