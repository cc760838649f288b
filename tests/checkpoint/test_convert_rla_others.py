"""The authors' ConvGRU network and MobileNetV2 with ECA, which have no stored outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmrecur.checkpoint import convert
from mmrecur.errors import TransferError
from mmrecur.models.backbones import RLAMobileNetV2, RLAResNet
from tests.checkpoint.authors_rla import ECAMobileNetV2, GRUResNet, fill
from tests.golden import relative_error

#: MobileNetV2 at width 0.5 keeps groups on both sides of ECA's 96 channels.
HALF = (16, 8, 16, 16, 32, 48, 80, 160)


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier: ``backbone``, pooling, ``head.fc``."""

    def __init__(self, backbone: nn.Module, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.fc = nn.Linear(backbone.out_channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def gru(num_classes: int = 1000, **kwargs) -> Classifier:
    backbone = RLAResNet(50, cell='gru', variant='v3', with_hidden=True, out_indices=(3,), **kwargs)
    return Classifier(backbone, num_classes)


def eca_mobilenet(num_classes: int = 1000, **kwargs) -> Classifier:
    kwargs = dict(attention='eca', out_indices=(7,), share='network') | kwargs
    return Classifier(RLAMobileNetV2(**kwargs), num_classes)


PAIRS = {
    'gru': (
        lambda: GRUResNet(8, k=4, num_classes=10),
        lambda: gru(10, base_channels=8, rla_channels=4),
    ),
    'eca mobilenet': (
        lambda: ECAMobileNetV2(HALF, k=8, num_classes=10),
        lambda: eca_mobilenet(10, width_mult=0.5, rla_channels=8),
    ),
}


@pytest.mark.parametrize('name', PAIRS)
def test_outputs_and_gradients_equal_the_authors(name: str) -> None:
    make_theirs, make_ours = PAIRS[name]
    theirs, ours = make_theirs(), make_ours()
    source = fill(theirs)
    state, report = convert(source, 'rlanet', ours)
    ours.load_state_dict(state)
    assert not report.initial and not report.notes
    assert all(key.startswith('recurrent_dsconvs.') for key in report.unused)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(images)
        assert relative_error(ours.eval()(images), expected) < 1e-4
    # in training the norms' statistics and every gradient go through the same places
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    theirs.double()(images.double()).square().mean().backward()
    ours.train().double()(images.double()).square().mean().backward()
    total = [sum(p.grad.square().sum() for p in model.parameters()).item() for model in (theirs, ours)]
    assert total[1] == pytest.approx(total[0], rel=1e-6)
    with torch.no_grad():
        ours.eval().backbone.switch_to_deploy()
        assert relative_error(ours(images.double()), theirs.eval()(images.double())) < 1e-6


@pytest.mark.parametrize(
    'theirs, ours, parameters',
    [(GRUResNet, gru, 26_056_104), (ECAMobileNetV2, eca_mobilenet, 3_624_199)],
)
def test_whole_networks_have_the_authors_parameters(theirs, ours, parameters: int) -> None:
    with torch.device('meta'):
        theirs, ours = theirs(), ours()
    for model in (theirs, ours):
        assert sum(p.numel() for p in model.parameters()) == parameters
    # every name and shape fits; there are no values to look at
    source = theirs.state_dict()
    dropped = {f'recurrent_dsconvs.{i}.weight' for i in range(1, 5)} & source.keys()
    state, report = convert({k: v for k, v in source.items() if k not in dropped}, 'rlanet', ours)
    assert not report.initial and not report.unused and state.keys() == ours.state_dict().keys()


def test_gru_goes_into_detectors_and_plain_networks() -> None:
    source = fill(GRUResNet(8, k=4))
    backbone = RLAResNet(50, cell='gru', variant='v3', base_channels=8, rla_channels=4)
    state, report = convert(source, 'rlanet', backbone)
    left = {key for key in source if key.startswith(('fc.', 'stage_bns.3.2.'))}
    assert set(report.unused) == left and not report.initial
    norm = state['layer2.rla.unit.gates_norm.weight']
    first, second = (source[f'recurrent_convs.1.{gate}_gate_norm.weight'] for gate in ('reset', 'update'))
    assert torch.equal(norm, torch.cat([first, second]))
    # without strict: a plain network has no parameters that read the state
    _, report = convert(source, 'rlanet', RLAResNet(50, base_channels=8, rla_channels=0), strict=False)
    why = report.unused['recurrent_convs.0.update_gate_norm.bias']
    assert why == 'the model has no recurrent path (rla_channels=0)'


def test_misfits_are_named() -> None:
    source = fill(GRUResNet(8, k=4))
    del source['recurrent_convs.2.update_gate_norm.weight']
    with pytest.raises(TransferError) as error:
        convert(source, 'rlanet', gru(base_channels=8, rla_channels=4))
    for part in ('layer3.rla.unit.gates_norm.weight', 'recurrent_convs.2.reset_gate_norm.weight'):
        assert part in str(error.value)
    # another cell has no place for the gates
    with pytest.raises(TransferError, match=r'unexpected in the source: .*gate_conv'):
        convert(source, 'rlanet', RLAResNet(50, variant='v3', base_channels=8, rla_channels=4))
    source = fill(ECAMobileNetV2(HALF, k=8))
    with pytest.raises(TransferError, match=r'unexpected in the source: stages.0.0.conv.3.conv.weight'):
        convert(source, 'rlanet', eca_mobilenet(attention=None, width_mult=0.5, rla_channels=8))
