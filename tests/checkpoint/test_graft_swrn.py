"""Plain Wide ResNets made into ones with banks."""

from __future__ import annotations

import re

import pytest
import torch
from mmpretrain.models import ResNet
from torch import Tensor, nn

from mmrecur.checkpoint import graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones import SWRN
from tests.helpers import randomise_norms

SMALL = dict(depth=22, width=2, base_channels=8)


def wrn(**kwargs) -> SWRN:
    torch.manual_seed(0)
    model = SWRN(**{**SMALL, 'num_templates': None, **kwargs})
    model.init_weights()
    randomise_norms(model)
    return model.eval()


def image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def wide_resnet_pytorch(key: str) -> str:
    """Names of the PyTorch Wide ResNet that the SWRN authors built on."""
    key = re.sub(r'^layer(\d)\.', r'block\1.layer.', key)
    return key.replace('.downsample.', '.convShortcut.').replace('final_norm.', 'bn1.')


def soft_sharing(key: str) -> str:
    """Names of the SWRN authors' code."""
    key = re.sub(r'^layer(\d)\.', r'stage_\1.', key).replace('.downsample.', '.convShortcut.')
    return re.sub(r'^conv1\.', 'conv_3x3.', key).replace('final_norm.', 'lastact.0.')


LAYOUTS = {'ours': str, 'Wide ResNet': wide_resnet_pytorch, 'authors': soft_sharing}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('num_templates', ['per_layer', 4, None])
def test_with_a_template_per_layer_nothing_changes(layout: str, num_templates) -> None:
    plain = wrn()
    source = {LAYOUTS[layout](key): value for key, value in plain.state_dict().items()}
    model = SWRN(**SMALL, num_templates=num_templates)
    state, report = graft(source, model)
    model.load_state_dict(state)
    assert not report.unused
    with torch.no_grad():
        for output, expected in zip(model.eval()(image()), plain(image()), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    if num_templates:
        how = report.transformed['layer2.bank.templates']
        assert how[1] == 'solved for the bank: exact' and len(how[0]) == 4
        assert torch.equal(state['layer2.bank.coefficients'], model.layer2.bank.coefficients)


def reordered(plain: SWRN, state: dict[str, Tensor], block: str) -> tuple[Tensor, Tensor]:
    """Return the weights of a plain block with its inner channels in the order of a graft."""
    source = plain.state_dict()
    theirs = source[f'{block}.bn2.weight'].tolist()
    order = [theirs.index(value) for value in state[f'{block}.bn2.weight'].tolist()]
    return source[f'{block}.conv1.weight'][order], source[f'{block}.conv2.weight'][:, order]


@pytest.mark.parametrize('num_templates', [1, 2, 3])
def test_fewer_templates_come_as_near_as_possible(num_templates: int) -> None:
    plain = wrn()
    model = SWRN(**SMALL, num_templates=num_templates)
    state, report = graft(plain.state_dict(), model)
    model.load_state_dict(state)
    for stage in (1, 2, 3):
        weights = torch.stack(
            [w.flatten() for i in (1, 2) for w in reordered(plain, state, f'layer{stage}.{i}')]
        )
        drawn = torch.stack(getattr(model, f'layer{stage}').bank()).flatten(1)
        values = torch.linalg.svdvals(weights)
        left_out = (values[num_templates:].norm() / values.norm()).item()
        assert ((drawn - weights).norm() / weights.norm()).item() == pytest.approx(left_out, rel=1e-3)
        assert f'{left_out:.3g}' in report.transformed[f'layer{stage}.bank.templates'][1]
        assert any(note.startswith(f'layer{stage}.bank: ') for note in report.notes)


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def test_whole_classifiers_graft() -> None:
    plain, model = Classifier(wrn(), 64), Classifier(SWRN(**SMALL), 64)
    state, report = graft(plain.state_dict(), model)
    model.load_state_dict(state)
    assert not report.unused
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image()), plain.eval()(image()), rtol=1e-4, atol=1e-5)


def test_torchvisions_wide_resnet_grafts_exactly() -> None:
    """mmpretrain's ResNet has torchvision's names; ``wide_resnet50_2`` is this class with these numbers."""
    torch.manual_seed(0)
    plain = ResNet(50, stem_channels=8, base_channels=16, expansion=2, out_indices=(0, 1, 2, 3))
    randomise_norms(plain)
    plain.eval()
    for num_templates in ('per_layer', None):
        model = SWRN(50, 2, num_templates, base_channels=8)
        state, report = graft(plain.state_dict(), model)
        model.load_state_dict(state)
        assert not report.unused
        with torch.no_grad():
            for output, expected in zip(model.eval()(image(64)), plain(image(64)), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_stages_that_are_not_built_are_explained() -> None:
    source = {**wrn().state_dict(), 'fc.weight': torch.zeros(3, 64), 'fc.bias': torch.zeros(3)}
    _, report = graft(source, SWRN(**SMALL, out_indices=(0, 1)))
    assert {key.split('.')[0] for key in report.unused} == {'layer3', 'final_norm', 'fc'}


def test_misfits_are_named() -> None:
    source = wrn().state_dict()
    del source['layer2.1.conv2.weight']
    with pytest.raises(TransferError, match='layer2.bank.templates'):
        graft(source, SWRN(**SMALL))
    source = {**wrn().state_dict(), 'layer2.1.conv2.weight': torch.zeros(3, 3, 3, 3)}
    with pytest.raises(TransferError, match=r'layers of layer2.bank .*, layer2.1.conv2.weight gives \(3, 3'):
        graft(source, SWRN(**SMALL))
    folded = SWRN(**SMALL, num_templates=2, tied_layers=dict(layer1=dict(bank=[0, 1, 0, 1])))
    with pytest.raises(TransferError, match='layer1.bank has tied layers'):
        graft(wrn().state_dict(), folded)


def test_half_precision_checkpoints_are_solved_for_in_the_models() -> None:
    plain = wrn()
    source = {k: v.half() if v.is_floating_point() else v for k, v in plain.state_dict().items()}
    plain.load_state_dict(source)
    model = SWRN(**SMALL).eval()
    model.load_state_dict(graft(source, model)[0])
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for output, expected in zip(model(x), plain.eval()(x), strict=True):
            assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
