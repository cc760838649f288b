"""Comparison of coefficients and bases, and the tool that draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrecur.analysis.coefficients import coefficients, cosine_similarity, gram_spectra, mean_similarity
from mmrecur.errors import ToolError
from mmrecur.models.backbones import ResNetShared, RLAResNet
from tests.tool_module import load_tool

SMALL = dict(depth=34, base_channels=4, shared_rank=3, unique_rank=1, bases=1)


def small() -> ResNetShared:
    torch.manual_seed(0)
    return ResNetShared(**SMALL)


def test_coefficients_are_those_of_the_shared_filters() -> None:
    model = small()
    found = coefficients(model)
    numbers = {stage: len(rows) for stage, rows in found.items()}
    assert numbers == dict(layer1=4, layer2=6, layer3=10, layer4=4)
    rows = found['layer2']['1.conv1']
    conv = model.get_submodule('layer2.1.conv1')
    # unique filters come first in the basis
    assert rows.shape == (8, 6) and torch.equal(rows, conv.coefficients.weight[:, 2:, 0, 0])
    assert torch.equal(conv.filters()[2:], model.layer2.basis['conv'].weight)


def test_similarity_does_not_depend_on_sign_and_size() -> None:
    rows = torch.randn(5, 4)
    similarity = cosine_similarity(rows)
    scaled = rows * torch.tensor([[1.0], [-2], [3], [-4], [5]])
    torch.testing.assert_close(cosine_similarity(scaled), similarity)
    expected = [abs(torch.cosine_similarity(a, b, 0)) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    assert mean_similarity(similarity) == pytest.approx(torch.stack(expected).mean().item())


def test_spectrum_is_flat_for_an_orthonormal_basis_only() -> None:
    model = small()
    assert [len(values) for values in gram_spectra(model)] == [3, 6, 12, 24]
    for values in gram_spectra(model):
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-5)
    weight = model.layer1.basis['conv'].weight
    weight.data[1] = weight.data[0]
    torch.testing.assert_close(gram_spectra(model)[0], torch.tensor([2.0, 1, 0]).double(), rtol=0, atol=1e-5)


def test_networks_without_coefficients_are_named() -> None:
    with pytest.raises(ValueError, match='RLAResNet has no backbone with shared filter bases'):
        coefficients(RLAResNet(50, base_channels=8))
    with pytest.raises(ValueError, match='ResNetShared has no factorised convolutions'):
        coefficients(ResNetShared(50, base_channels=8))


def test_the_tool_compares_checkpoints(tmp_path: Path, capsys: Any) -> None:
    tool = load_tool('analysis_tools/plot_coefficients.py')
    model = small()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'first.pth')
    for _, conv in model.layer2.factorized():
        conv.coefficients.weight.data.fill_(1)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'second.pth')
    arguments = ', '.join(f'{key}={value}' for key, value in SMALL.items())
    command = [f'mmrecur.ResNetShared({arguments})', str(tmp_path / 'first.pth')]
    command += [f'equal={tmp_path / "second.pth"}', '--json']
    files = tmp_path / 'similarity.png', tmp_path / 'spectrum.svg'
    tool.main([*command, '--similarity', str(files[0]), '--spectrum', str(files[1])])
    result = json.loads(capsys.readouterr().out)
    assert result['equal']['mean_similarity']['layer2'] == pytest.approx(1)
    assert 0 < result['first']['mean_similarity']['layer2'] < 0.9
    assert result['first']['eigenvalues'][3] == pytest.approx([1, 1], abs=1e-4)
    assert all(file.stat().st_size > 1000 for file in files)
    with pytest.raises(ToolError, match="--stage 'layer9', allowed: layer1, layer2"):
        tool.main([*command, '--stage', 'layer9', '--similarity', str(files[0])])


def test_the_tool_shows_every_basis_also_without_coefficients(capsys: Any) -> None:
    tool = load_tool('analysis_tools/plot_coefficients.py')
    tool.main(["mmrecur.ResNetShared(depth=50, base_channels=8, share='double')", '--json'])
    result = json.loads(capsys.readouterr().out)['as built']
    # the 3x3 and the last 1x1 of four stages
    assert result['mean_similarity'] == {} and len(result['eigenvalues']) == 8
    tool.main(['mmrecur.ResNetShared(depth=50, base_channels=8)'])
    assert capsys.readouterr().out.count('group ') == 4
    # the fourth dense block reads the third one's basis
    tool.main(["mmrecur.DenseNetShared(growth_rate=4, stem_channels=8, last_basis='third')"])
    assert 'layer4' in capsys.readouterr().out
    with pytest.raises(ToolError, match='has no factorised convolutions'):
        tool.main(['mmrecur.ResNetShared(depth=50, base_channels=8, share=None)'])
    with pytest.raises(ToolError, match='has no factorised convolutions'):
        tool.main(['mmrecur.ResNetShared(depth=50, base_channels=8)', '--similarity', 'similarity.png'])
