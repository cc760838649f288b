"""deploy() on whole models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrecur.apis import deploy
from mmrecur.models.backbones import RLAResNet
from tests.helpers import randomise_norms


class Detector(nn.Module):
    """A model with a backbone and a neck."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = RLAResNet(50, base_channels=8, rla_channels=4)
        self.neck = nn.Conv2d(256, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neck(self.backbone(x)[-1])


def test_every_backbone_in_a_model_is_deployed() -> None:
    model = Detector()
    randomise_norms(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        assert deploy(model.train()) is model and model.backbone.deployed and not model.training
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_layout_is_channels_last_on_a_cpu_unless_asked_otherwise() -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        default = deploy(Detector()).backbone(x)[0]
        contiguous = deploy(Detector(), torch.contiguous_format).backbone(x)[0]
    assert default.is_contiguous(memory_format=torch.channels_last)
    assert contiguous.is_contiguous()


def test_a_model_without_our_backbones_is_refused() -> None:
    with pytest.raises(ValueError, match='Conv2d has no backbone of mmrecur'):
        deploy(nn.Conv2d(1, 1, 1))
