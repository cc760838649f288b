"""Shared weights fitted to images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checkpoint import graft
from mmrecur.checkpoint.grafts import input_statistics
from mmrecur.checkpoint.grafts.data_fit import coefficients, fit_bank, fit_basis, fit_whole
from mmrecur.models.backbones import SWRN, DenseNetShared, MobileNetV2Shared, ResNetShared
from mmrecur.models.layers import FactorizedConv2d
from tests.helpers.shared_bases import FULL_RANK, error, plain
from tests.helpers.transfer import assert_complete

SMALL = dict(depth=50, base_channels=4)


def images(n: int = 8, size: int = 48) -> Tensor:
    """Return smooth images: neighbouring pixels are alike, as in photographs."""
    noise = torch.randn(n, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(3))
    return F.interpolate(noise, scale_factor=4, mode='bilinear')


@torch.no_grad()
def network(kind: type, batch: Tensor, **arguments) -> nn.Module:
    """Build a plain network whose norms have the statistics of a batch."""
    model = plain(kind, **arguments).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    model(batch)
    return model.eval()


def distance(model: nn.Module, source: nn.Module, batch: Tensor) -> float:
    with torch.no_grad():
        ours, theirs = (m.eval()(batch)[-1] for m in (model, source))
    return ((ours - theirs).norm() / theirs.norm()).item()


FAMILIES = {
    'bases': (ResNetShared, dict(depth=34, base_channels=8), dict(share=None), dict(shared_rank=8)),
    'whole convolutions': (ResNetShared, SMALL, dict(share=None), dict(share='double')),
    'expansions': (MobileNetV2Shared, dict(width_mult=0.25, out_indices=(5,)), dict(share=None), {}),
    'dense layers': (
        DenseNetShared,
        dict(growth_rate=4, stem_channels=8, out_indices=(1,)),
        dict(shared_rank=0),
        dict(shared_rank=8),
    ),
    'templates': (SWRN, dict(depth=22, width=1), dict(num_templates=None), dict(num_templates=2)),
    'templates of bottlenecks': (
        SWRN,
        dict(depth=50, width=1, base_channels=4),
        dict(num_templates=None),
        dict(num_templates=2),
    ),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_images_bring_the_outputs_closer(family: str) -> None:
    kind, common, off, on = FAMILIES[family]
    batch = images()
    source, model = network(kind, batch, **common, **off), kind(**common, **on)
    distances = []
    for given in (None, batch):
        state, report = graft(source.state_dict(), model, images=given)
        assert_complete(report, source.state_dict(), model, splits=True)
        model.load_state_dict(state)
        distances.append(distance(model, source, batch))
    # random bottlenecks and expansions are so far off that the graft stays as it is without images
    stays = 'fitted without the images: on them, the result is closer' in report.notes
    assert stays is (family in ('whole convolutions', 'expansions', 'templates of bottlenecks'))
    assert distances[1] == distances[0] if stays else distances[1] < distances[0]
    assert report.errors and all(0 <= value < 1 for value in report.errors.values())


@pytest.mark.parametrize('name', FULL_RANK)
def test_full_rank_stays_exact(name: str) -> None:
    kind, arguments, small = FULL_RANK[name]
    # small enough for every position to be read
    batch = images(size=16 if kind is DenseNetShared else 48)
    source = network(
        kind, batch, **small, **(dict(shared_rank=0) if kind is DenseNetShared else dict(share=None))
    )
    model = kind(**arguments)
    state, report = graft(source.state_dict(), model, images=batch)
    model.load_state_dict(state)
    assert max(report.errors.values()) < 1e-5
    with torch.no_grad():
        assert error(model.eval()(batch), source(batch)) < 1e-4
        # the norms between bases and coefficients are the identity on the images, in training too
        evaluated = model(batch)
        for conv in (m for m in model.modules() if isinstance(m, FactorizedConv2d)):
            conv.norm.train()
        assert error(model(batch), evaluated) < 1e-3
    for group in model.basis_groups():
        for matrix in group.shared:
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)


def problem(count: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 6, dtype=torch.double, generator=generator) for _ in range(count)]
    roots = [torch.randn(6, 6, dtype=torch.double, generator=generator) for _ in range(count)]
    return weights, [root @ root.T + 0.1 * torch.eye(6) for root in roots]


def loss(weights: list[Tensor], fits: list[Tensor], metrics: list[Tensor]) -> float:
    return sum((((w - f) @ m) * (w - f)).sum().item() for w, f, m in zip(weights, fits, metrics))


def assert_minimum(objective, *optimum: Tensor) -> None:
    """Check that the objective grows in random directions."""
    generator, least = torch.Generator().manual_seed(1), objective(*optimum)
    for _ in range(20):
        steps = [1e-2 * torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in optimum]
        assert objective(*(x + step for x, step in zip(optimum, steps))) > least


def test_fits_are_optimal() -> None:
    weights, metrics = problem()
    whole = fit_whole([w[None] for w in weights], [m[None] for m in metrics])[0]
    assert_minimum(lambda w: loss(weights, [w] * 3, metrics), whole)
    filters = fit_basis(weights, metrics, [torch.ones(5, 1).double()] * 3, 3)
    factors = coefficients(weights[0], filters, metrics[0])
    assert_minimum(lambda a: loss(weights[:1], [a @ filters], metrics[:1]), factors)
    # with one metric the basis is optimal, too
    same = metrics[:1] * 3
    filters = fit_basis(weights, same, [torch.ones(5, 1).double()] * 3, 3)

    def best(basis: Tensor) -> float:
        return loss(weights, [coefficients(w, basis, m) @ basis for w, m in zip(weights, same)], same)

    assert_minimum(best, filters)


def test_templates_improve_and_each_half_step_is_optimal() -> None:
    weights, metrics = problem(4)
    start = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(2)).double()).Q
    templates = torch.einsum('lk,ltc->ktc', start, torch.stack(weights))

    def objective(factors: Tensor, templates: Tensor) -> float:
        return loss(weights, [*torch.einsum('lk,ktc->ltc', factors, templates)], metrics)

    factors, fitted = fit_bank(weights, metrics, start, templates)
    assert objective(factors, fitted) < objective(start, templates)
    assert_minimum(lambda a: objective(a, fitted), factors)


@pytest.mark.parametrize('given', [None, images()])
@pytest.mark.parametrize('family', ['templates', 'expansions'])
def test_the_order_of_inner_channels_does_not_matter(family: str, given: Tensor | None) -> None:
    kind, common, off, on = FAMILIES[family]
    source = network(kind, images(), **common, **off).state_dict()
    shuffled, generator = dict(source), torch.Generator().manual_seed(4)
    chains = {'templates': ('conv1', 'bn2', 'conv2'), 'expansions': ('conv1', 'bn1', 'conv2', 'bn2', 'conv3')}
    first, *between, last = chains[family]
    for name in [n for n in source if n.endswith(f'.{last}.weight')]:
        block = name.removesuffix(f'.{last}.weight')
        if block.endswith('.0') or block.endswith('.1'):
            continue  # the first block that shares keeps its order
        order = torch.randperm(source[name].size(1), generator=generator)
        shuffled[name] = source[name][:, order]
        for layer in (first, *between):
            for key in (k for k in source if k.startswith(f'{block}.{layer}.') and source[k].dim()):
                shuffled[key] = source[key][order]
    reports = [graft(state, kind(**common, **on), images=given)[1] for state in (source, shuffled)]
    for place, value in reports[0].errors.items():
        assert reports[1].errors[place] == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_statistics_of_large_maps_are_sampled_and_images_streamed(monkeypatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2))
    batches = [images(3, 32), images(2, 48)]
    convs = {'0': model[0], '2': model[2]}
    whole = input_statistics.input_statistics(model, convs, batches)
    columns = torch.cat([F.unfold(b, 3, 1, 1, 2).transpose(0, 1).flatten(1) for b in batches], 1).double()
    assert whole['0'].count == columns.size(1) and whole['2'].mean.shape == (2, 18)
    torch.testing.assert_close(whole['0'].mean[0], columns.mean(1))
    torch.testing.assert_close(whole['0'].covariance[0], torch.cov(columns, correction=0))
    monkeypatch.setattr(input_statistics, 'CHUNK_PIXELS', 1000)
    split = input_statistics.input_statistics(model, convs, batches)
    torch.testing.assert_close(split['2'].second_moment, whole['2'].second_moment)
    monkeypatch.setattr(input_statistics, 'POSITIONS', 64)
    sampled = input_statistics.input_statistics(model, convs, batches)
    assert (sampled['0'].covariance - whole['0'].covariance).norm() < 0.3 * whole['0'].covariance.norm()


def test_sizes_and_precisions_may_differ() -> None:
    batch = images()
    source, model = network(ResNetShared, batch, **SMALL, share=None), ResNetShared(**SMALL)
    one, _ = graft(source.state_dict(), model, images=batch)
    two, _ = graft(source.state_dict(), model, images=[batch[:5].double(), batch[5:]])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)
    half = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    distances = []
    for checkpoint in (source.state_dict(), half):
        model.load_state_dict(graft(checkpoint, model, images=[batch, images(2, 64)])[0])
        distances.append(distance(model, source, batch))
    assert distances[1] == pytest.approx(distances[0], rel=0.02)


@pytest.mark.parametrize(
    ('batch', 'message'),
    [
        (images()[0], r'images of shape \(3, 48, 48\), allowed: normalised images of shape \(N, 3, H, W\)'),
        (images()[:, :1], r'images of shape \(8, 1, 48, 48\)'),
        (images()[:0], r'images of shape \(0, 3, 48, 48\)'),
        ([images().mul(10).to(torch.uint8)], 'images of type torch.uint8, allowed: .* floating-point'),
        ([], r'images=\[\], allowed'),
        ('folder', "images='folder', allowed"),
        (images() / 0, 'images contain a value that is infinite'),
    ],
)
def test_other_images_are_refused(batch: object, message: str) -> None:
    source = plain(ResNetShared, **SMALL, share=None).state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        graft(source, ResNetShared(**SMALL), images=batch)


def test_global_generators_stay_as_they_are() -> None:
    source = ResNetShared(20, base_channels=4, share=None).state_dict()
    model, images = ResNetShared(20, base_channels=4, shared_rank=3), torch.randn(2, 3, 16, 16)
    before = torch.get_rng_state()
    graft(source, model, images=images)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_of_a_module_are_grafted_too() -> None:
    source = ResNetShared(50, base_channels=4, share=None).state_dict(keep_vars=True)
    state, _ = graft(source, ResNetShared(50, base_channels=4), images=torch.randn(2, 3, 32, 32))
    shared = state['layer1.basis.conv2.weight']
    assert not shared.requires_grad and shared.isfinite().all()
