"""Tied layers: unchanged outputs, fewer parameters, further training."""

from __future__ import annotations

import copy

import pytest
import torch
from matplotlib.patches import FancyArrowPatch
from torch import Tensor, nn

from mmrecur.analysis.sharing_figures import plot_loops
from mmrecur.analysis.tied_layers import describe_loops, find_loops, layer_sequences
from mmrecur.checkpoint import tie_layers
from mmrecur.checkpoint.tie import cluster
from mmrecur.models.backbones import SWRN
from mmrecur.models.layers import TemplateBank, share_convs, template_banks
from mmrecur.models.layers.template_bank.similarity import similarity_matrices
from mmrecur.models.shortest_path import ShortestPathNet
from tests.helpers import randomise_norms

ARGUMENTS = dict(depth=28, width=1, num_templates=4, base_channels=8)
#: Multiples of one another: layers 1, 3, 5 of each bank and layers 2, 4, 6, with either sign.
FACTORS = ((0, 1.0), (1, 1.0), (0, -2.0), (1, 0.5), (0, 1.5), (1, -1.0))


def alike(model: nn.Module) -> nn.Module:
    """The model with layers of similarity 1 in every bank."""
    randomise_norms(model)
    for bank in template_banks(model).values():
        base = torch.randn(2, bank.num_templates)
        rows = [scale * base[row] for row, scale in FACTORS[: bank.num_layers]]
        bank.coefficients.data.copy_(torch.stack(rows))
    return model.eval()


def swrn(**kwargs) -> SWRN:
    torch.manual_seed(0)
    return SWRN(**{**ARGUMENTS, **kwargs})


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def assert_close(outputs, expected, tolerance: float = 1e-5) -> None:
    for output, reference in zip(outputs, expected, strict=True):
        assert (output - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize('num_templates', [1, 2, 4, 'per_layer'])
def test_layers_of_similarity_1_are_tied_without_a_change(num_templates) -> None:
    model = alike(swrn(num_templates=num_templates))
    state, tied_layers = tie_layers(model.state_dict(), model, 1.0)
    rows = [0, 0, 0, 0, 0, 0] if num_templates == 1 else [0, 1, 0, 1, 0, 1]
    assert tied_layers.arguments() == {f'layer{i}': {'bank': rows} for i in (1, 2, 3)}
    assert all(bank.error < 1e-6 for bank in tied_layers.banks.values())
    tied = swrn(num_templates=num_templates, tied_layers=tied_layers.arguments())
    tied.load_state_dict(state)
    with torch.no_grad():
        expected = model(image())
        assert_close(tied.eval()(image()), expected)
        in_place = tied_layers.apply(copy.deepcopy(model))
        assert_close(in_place(image()), expected)
        tied.switch_to_deploy()
        assert_close(tied(image()), expected, 1e-4)
    count = sum(p.numel() for p in model.parameters())
    assert tied_layers.parameters == (count, sum(p.numel() for p in in_place.parameters()))
    if num_templates == 4:  # two templates of each bank are gone, eight coefficients but for the factors
        sizes = [b.templates.numel() // 2 for b in template_banks(model).values()]
        assert tied_layers.parameters[1] == count - sum(sizes) - 3 * (24 - 4 - 6)
    # factors are those of the first layer of each kind
    scales = tied_layers.banks['layer1.bank'].scales
    if num_templates != 1:
        assert scales.sign().tolist() == [1, 1, -1, 1, 1, -1]
        assert (scales[2] / scales[0]).item() == pytest.approx(-2, abs=1e-5)


def test_models_with_tied_layers_train_on_and_are_tied_again() -> None:
    model = alike(swrn())
    _, tied_layers = tie_layers(model.state_dict(), model, 1.0)
    tied = tied_layers.apply(copy.deepcopy(model)).train()
    optimiser = torch.optim.SGD(tied.parameters(), 0.1)
    before = {key: value.clone() for key, value in tied.named_parameters()}
    sum(output.square().mean() for output in tied(image())).backward()
    optimiser.step()
    assert all(p.grad is not None for p in tied.parameters())
    assert not torch.equal(tied.layer2.bank.row_scales, before['layer2.bank.row_scales'])
    # layers 1 and 3 have moved, but are still one
    similarity = tied.layer1.bank.similarity()
    assert similarity[0, 2].item() == pytest.approx(1, abs=1e-6)
    tied.eval()
    state, again = tie_layers(tied.state_dict(), tied, 0.001)
    assert again.arguments()['layer1'] == {'bank': [0] * 6}
    smaller = swrn(tied_layers=again.arguments())
    smaller.load_state_dict(state)


def test_what_was_frozen_stays_frozen() -> None:
    model = alike(swrn(frozen_stages=1))
    _, tied_layers = tie_layers(model.state_dict(), model, 1.0)
    tied = tied_layers.apply(model)
    learning = {name for name, p in tied.named_parameters() if p.requires_grad}
    assert tied.layer1.bank.rows == (0, 1, 0, 1, 0, 1)
    assert not any(name.startswith('layer1.') for name in learning)
    assert {f'layer2.bank.{part}' for part in ('templates', 'coefficients', 'row_scales')} <= learning


def test_layers_that_are_only_similar_become_the_nearest_one() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(bank=TemplateBank(3, 3, (4, 4, 3, 3))))
    bank = model['bank']
    bank.coefficients.data = torch.tensor([[1.0, 0.1, 0.0], [-1.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
    state, tied_layers = tie_layers(model.state_dict(), model, 0.9)
    weights = torch.stack(bank()).flatten(1).detach()
    assert tied_layers.banks['bank'].rows == (0, 0, 1)
    tied = torch.stack(tied_layers.apply(copy.deepcopy(model))['bank']()).flatten(1).detach()
    # the best of rank one for the first two, as the singular values say
    left_out = torch.linalg.svdvals(weights[:2])[1]
    assert (tied[:2] - weights[:2]).norm().item() == pytest.approx(left_out.item(), rel=1e-4)
    torch.testing.assert_close(tied[2], weights[2])
    assert tied_layers.banks['bank'].error == pytest.approx((left_out / weights.norm()).item(), rel=1e-4)
    assert (tied_layers.banks['bank'].scales < 0).tolist() == [False, True, False]


def test_groups_are_alike_in_every_pair() -> None:
    chain = torch.tensor([[1.0, 0.9, 0.5], [0.9, 1.0, 0.8], [0.5, 0.8, 1.0]])
    assert cluster(chain, 0.75) == (0, 0, 1)  # 1 and 3 are not similar
    assert cluster(chain, 0.5) == (0, 0, 0)
    assert cluster(chain, 0.95) == (0, 1, 2)
    assert cluster(torch.ones(4, 4), 1.0) == (0, 0, 0, 0)
    crossed = torch.eye(4)
    crossed[0, 2] = crossed[2, 0] = crossed[1, 3] = crossed[3, 1] = 0.99
    assert cluster(crossed, 0.9) == (0, 1, 0, 1)


def test_below_the_threshold_nothing_changes() -> None:
    model = swrn(num_templates='per_layer')
    state, tied_layers = tie_layers(model.state_dict(), model, 0.9)
    assert tied_layers.arguments() == {} and tied_layers.parameters[0] == tied_layers.parameters[1]
    model.load_state_dict(state)


def test_layers_of_other_networks_are_tied_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)))
    share_convs(model, 4)
    alike(model)
    x = torch.randn(1, 4, 9, 9)
    expected = model(x)
    _, tied_layers = tie_layers(model.state_dict(), model, 1.0)
    assert_close([tied_layers.apply(model)(x)], [expected])
    assert layer_sequences(model) == {'0.bank': [1, 2, 1, 2, 1, 2]}

    net = alike(ShortestPathNet(num_templates=4, num_layers=6, channels=4))
    state, tied_layers = tie_layers(net.state_dict(), net, 1.0)
    tied = ShortestPathNet(4, num_layers=6, channels=4, tied_layers=tied_layers.arguments()).eval()
    tied.load_state_dict(state)
    x = torch.rand(1, 2, 8, 8)
    assert_close([tied(x)], [net(x)])


@pytest.mark.parametrize('threshold', [0, 1.5, 'high'])
def test_wrong_thresholds_are_named(threshold) -> None:
    model = swrn()
    with pytest.raises(ValueError, match=f'threshold={threshold!r}, allowed: a number above 0 and at most 1'):
        tie_layers(model.state_dict(), model, threshold)


def test_a_network_without_banks_is_refused() -> None:
    model = swrn(num_templates=None)
    with pytest.raises(ValueError, match='no template bank'):
        tie_layers(model.state_dict(), model, 0.9)


@pytest.mark.parametrize(
    'sequence, text',
    [
        ([1, 2, 3, 4, 3, 4, 3, 4], '1 2 (3 4) x 3'),
        ([1, 1, 1], '(1) x 3'),
        ([1, 2, 3, 4], '1 2 3 4'),
        # the second stage of Figure 6: a loop, and back to the beginning
        ([3, 4, 5, 6, 5, 6, 3, 4, 5, 6], '3 4 (5 6) x 2 3 4 5 6'),
        # loops in loops
        ([1, 2, 2, 3, 1, 2, 2, 3], '(1 (2) x 2 3) x 2'),
    ],
)
def test_loops_are_found(sequence: list[int], text: str) -> None:
    loops = find_loops(sequence)
    assert describe_loops(loops) == text

    def unrolled(items) -> list[int]:
        steps = []
        for item in items:
            steps += [item] if isinstance(item, int) else item[0] * unrolled(item[1])
        return steps

    assert unrolled(loops) == sequence


def test_far_arrows_are_drawn_whole() -> None:
    far = [*range(1, 10), 1, 6, 6, 9]
    figure = plot_loops({'near': [1, 2, 1, 2], 'far': far})
    figure.draw_without_rendering()
    for axes, number in zip(figure.axes, (2, 12), strict=True):
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        assert len(arrows) == number + 2  # transitions of different layers, and into and out of the stage
        low, high = axes.get_ylim()
        for arrow in arrows:
            box = arrow.get_path().get_extents()
            assert low < box.ymin and box.ymax < high


def test_stages_run_their_own_layers_first() -> None:
    folding = dict(layer2=dict(bank=[0, 1, 0, 1, 0, 1]))
    sequences = layer_sequences(nn.ModuleDict(dict(backbone=swrn(tied_layers=folding))))
    assert sequences['backbone.layer1'] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sequences['backbone.layer2'] == [1, 2, 3, 4, 3, 4, 3, 4]
    # three kinds of layers take turns in a bottleneck; the first one of a stage is on its own
    folding = dict(layer1=dict(bank1=[0, 0], bank2=[0, 0, 0], bank3=[0, 1, 1]))
    with torch.device('meta'):
        bottleneck = SWRN(50, 2, tied_layers=folding)
    assert layer_sequences(bottleneck)['layer1'] == [1, 2, 3, 4, 2, 6, 4, 2, 6]


def test_weights_of_another_model_are_named() -> None:
    model = swrn()
    for other in (swrn(num_templates=2), swrn(num_templates=None), swrn(depth=16, num_templates=2)):
        with pytest.raises(ValueError, match=r'state_dict has .* for layer1.bank.*, allowed: .*shape \('):
            tie_layers(other.state_dict(), model, 0.9)
        with pytest.raises(ValueError, match='state_dict has .* for layer1.bank'):
            similarity_matrices(model, other.state_dict())


def test_what_is_tied_stays_tied_when_it_lost_its_say() -> None:
    model = alike(swrn())
    state, tied_layers = tie_layers(model.state_dict(), model, 1)
    tied = swrn(tied_layers=tied_layers.arguments())
    tied.load_state_dict(state)
    with torch.no_grad():
        tied.layer1.bank.row_scales.zero_()
        tied.layer2.bank.row_scales[2] = 0
    again, again_tied = tie_layers(tied.state_dict(), tied, 1)
    assert again_tied.arguments() == tied_layers.arguments()
    twice = swrn(tied_layers=again_tied.arguments()).eval()
    twice.load_state_dict(again)
    with torch.no_grad():
        assert_close(twice(image()), tied.eval()(image()))
