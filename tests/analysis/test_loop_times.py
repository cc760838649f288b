"""Decisions of gates: counted for each image, drawn and forced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmrecur.analysis.forced_loops import forced_iterations, spread_iterations
from mmrecur.analysis.gate_maps import GateMaps, MapStatistics, shallow_and_deep
from mmrecur.analysis.loop_complexity import LoopComplexity, LoopWork, measure_loops
from mmrecur.analysis.loop_figures import plot_easy_and_hard, plot_gate_maps, plot_loop_times
from mmrecur.analysis.loop_recorder import LoopRecorder, find_loop_backbone
from mmrecur.analysis.loop_run import LoopRun, run_loops
from mmrecur.analysis.loop_times import LoopTimes
from mmrecur.engine.figures import save_figure
from mmrecur.models.backbones import DRResNet
from mmrecur.models.layers.loop import expected_iterations
from tests.helpers import halve_batches, randomise_norms


def tiny(**kwargs) -> DRResNet:
    """Build a network with four loops whose gates let half of the images pass."""
    torch.manual_seed(3)
    model = DRResNet(None, (1, 3, 3), (1, 2, 3), stem='cifar', base_channels=4, **kwargs)
    model.double().eval()
    randomise_norms(model)
    for block in model.loop_blocks().values():
        nn.init.normal_(block.gate.fc2.weight, std=10)
    halve_batches(model, images())
    return model


def images(count: int = 24) -> Tensor:
    x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    return x * torch.linspace(0.2, 3, count).view(-1, 1, 1, 1).double()


def set_skip(model: DRResNet, skip: bool) -> None:
    for block in model.loop_blocks().values():
        block.skip = skip


def counts_of_one(model: DRResNet, x: Tensor) -> tuple[dict[str, int], dict[tuple[str, int], Tensor]]:
    """Return the iterations of each loop for a single image, and the maps at the gates.

    Both are taken from the decisions of the gates while every iteration is computed.
    """
    answers: dict[str, list[bool]] = {name: [] for name in model.loop_blocks()}
    maps = {}

    def keep(name: str):
        def hook(gate: nn.Module, args: tuple, output: Tensor) -> None:
            maps[name, len(answers[name])] = args[0]
            answers[name].append(output.item())

        return hook

    set_skip(model, False)
    handles = [b.gate.register_forward_hook(keep(n)) for n, b in model.loop_blocks().items()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    free = model.loop_blocks()['layer2.1'].first_gated
    counts = {name: free + [*own, False].index(False) for name, own in answers.items()}
    maps = {(name, free + k): own for (name, k), own in maps.items()}
    reached = {key: own for key, own in maps.items() if key[1] <= counts[key[0]]}
    return counts, reached


@pytest.mark.parametrize('skip', [True, False])
@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('gate_position', ['before', 'after'])
def test_counts_are_those_of_each_image_alone(skip: bool, deploy: bool, gate_position: str) -> None:
    model, x = tiny(gate_position=gate_position), images()
    expected = [counts_of_one(model, image)[0] for image in x.split(1)]
    least = 0 if gate_position == 'before' else 1
    assert {count for own in expected for count in own.values()} == {0, 1, 2, 3} - set(range(least))
    if deploy:
        model.switch_to_deploy()
    set_skip(model, skip)
    with LoopRecorder(model) as recorder, torch.no_grad():
        for batch in x.split(10):
            model(batch)
    times = recorder.times()
    with torch.no_grad():
        model(x)  # outside the context: not recorded
    assert times.limits == {'layer2.1': 2, 'layer2.2': 2, 'layer3.1': 3, 'layer3.2': 3} and times.limit == 10
    for name, counts in times.counts.items():
        assert counts.tolist() == [own[name] for own in expected]
    assert times.totals.tolist() == [sum(own.values()) for own in expected]
    assert len(recorder.times().totals) == 24


def test_rates_are_shares_of_the_images_that_reach_the_gate() -> None:
    times = LoopTimes({'a': 3, 'b': 2}, {'a': np.array([0, 1, 1, 3]), 'b': np.array([0, 0, 0, 0])})
    assert times.rates() == {'a': [3 / 4, 1 / 3, 1.0], 'b': [0.0, None]}


@pytest.mark.parametrize('skip, gate_position', [(True, 'before'), (False, 'before'), (True, 'after')])
def test_maps_are_separated_by_the_decision_of_the_gate(skip: bool, gate_position: str) -> None:
    model, x = tiny(gate_position=gate_position), images()
    groups: dict[tuple[str, int, bool], list[Tensor]] = {}
    for image in x.split(1):
        counts, reached = counts_of_one(model, image)
        for (name, k), maps in reached.items():
            groups.setdefault((name, k, counts[name] > k), []).append(maps)
    set_skip(model, skip)
    with LoopRecorder(model) as recorder, torch.no_grad():
        for batch in x.split(7):
            model(batch)
    assert len(recorder.maps) == (10 if gate_position == 'before' else 6)
    for gate in recorder.maps:
        for kind, statistics in ((True, gate.passed), (False, gate.skipped)):
            maps = groups.get((gate.block, gate.iteration, kind), [])
            assert statistics.images == len(maps)
            if maps:
                maps = torch.cat(maps)
                np.testing.assert_allclose(statistics.mean, maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-7)
                variance = maps.var((0, 2, 3), correction=0)
                np.testing.assert_allclose(statistics.variance, variance, rtol=1e-4, atol=1e-7)


def maps_of(values: list[list[float]]) -> MapStatistics:
    """Return the statistics of one map with a row of pixel values for each channel."""
    statistics = MapStatistics()
    if values:
        statistics.add(torch.tensor(values).view(1, len(values), 1, -1))
    return statistics


def test_discrepancy_is_the_difference_of_means_in_deviations() -> None:
    passed, skipped = maps_of([[0, 2], [5, 5], [1, 3]]), maps_of([[3, 5], [5, 5], [1, 3]])
    assert GateMaps('a', 0, passed, skipped).discrepancy() == pytest.approx((3 + 0) / 2)  # one is constant
    assert GateMaps('a', 0, passed, maps_of([])).discrepancy() is None
    assert GateMaps('a', 0, maps_of([[1, 1]]), maps_of([[1, 1]])).discrepancy() == 0


def test_the_figure_has_the_first_and_the_last_loop_with_both_kinds() -> None:
    def gate(block: str, iteration: int, passed: int, skipped: int) -> GateMaps:
        both = [MapStatistics(), MapStatistics()]
        for statistics, number in zip(both, (passed, skipped)):
            statistics.add(torch.zeros(number, 1, 1, 1))
        return GateMaps(block, iteration, *both)

    a, b, c = (gate('a', 0, 9, 0), gate('a', 1, 8, 1)), (gate('b', 0, 5, 4),), (gate('c', 0, 1, 8),)
    c += gate('c', 1, 5, 3), gate('c', 2, 1, 2)
    assert shallow_and_deep([*a, *b, *c]) == [a[1], c[1]]
    assert shallow_and_deep([*a, gate('b', 0, 0, 9)]) == [a[1]]
    assert shallow_and_deep([a[0]]) == []


def test_easy_and_hard_images_are_ordered_with_ties_in_the_order_of_the_data_set() -> None:
    counts = dict(a=np.array([2, 5, 1, 2, 5, 0, 2]), b=np.array([1, 0, 1, 1, 0, 2, 5]))
    times = LoopTimes(dict(a=5, b=5), counts)
    assert times.totals.tolist() == [3, 5, 2, 3, 5, 2, 7]
    assert times.easiest_and_hardest(3) == ([2, 5, 0], [6, 1, 4])
    easy, hard = times.easiest_and_hardest(100)
    assert (easy, hard) == ([2, 5, 0, 3], [6, 1, 4])  # no image is in both groups
    same = LoopTimes({'a': 1}, {'a': np.ones(4, int)})
    assert same.easiest_and_hardest(2) == ([0, 2], [1, 3])
    many = LoopTimes({'a': 4}, {'a': np.array([1] + 9 * [3] + 20 * [4])})
    assert many.easiest_and_hardest(4) == ([0, 1, 4, 7], [10, 15, 20, 25])  # ties are spread evenly


def test_average_work_is_that_of_the_images() -> None:
    counts = dict(a=np.array([0, 2, 1, 2]), b=np.array([1, 1, 0, 1]))
    times = LoopTimes(dict(a=2, b=1), counts)
    work = LoopComplexity(1000, dict(a=LoopWork(2, 100, 1), b=LoopWork(1, 50, 2)))
    maps = [GateMaps(name, k, maps_of([]), maps_of([])) for name, k in (('a', 0), ('a', 1), ('b', 0))]
    run = LoopRun(times, maps, [0, 1, 0, 1], [True, False, True, True], work, (32, 32), 'model')
    summary = run.summary()
    # all four images reach the first gate of a, three the second
    assert summary['multiply_adds']['average'] == pytest.approx(1000 + (4 + 3 + 500 + 8 + 150) / 4)
    assert summary['multiply_adds']['maximum'] == 1000 + 202 + 52
    assert summary['iterations'] == dict(
        limit=3, mean=2.0, std=pytest.approx(np.std([1, 3, 1, 3])), histogram=[0, 2, 0, 2]
    )
    assert summary['accuracy'] == {1: dict(images=2, accuracy=1.0), 3: dict(images=2, accuracy=0.5)}
    assert summary['loops']['a']['gates'][1]['rate'] == pytest.approx(2 / 3)
    unlabelled = LoopRun(times, maps, [None] * 4, [None] * 4, work, (32, 32), 'model')
    assert 'accuracy' not in unlabelled.summary()


def test_classes_with_the_greatest_difference_come_first() -> None:
    times = LoopTimes({'a': 9}, {'a': np.array([3, 1, 5, 9, 4, 4, 7, 0])})
    labels = [0, 0, 1, 1, 2, 2, 1, 3]  # class 3 has a single image
    assert times.easiest_and_hardest_of_classes(labels, 2) == ([2, 1], [3, 0])
    assert times.easiest_and_hardest_of_classes(labels, 9) == ([2, 1, 4], [3, 0, 5])
    assert times.easiest_and_hardest_of_classes(range(8), 9) == ([], [])


def test_a_network_without_gates_is_rejected() -> None:
    message = 'DRResNet has no gates, allowed: a backbone with gated loops, such as mmrecur.DRResNet'
    plain = DRResNet(16, gated=False)
    for call in (LoopRecorder, find_loop_backbone, lambda model: run_loops(model, [])):
        with pytest.raises(ValueError, match=message):
            call(plain)
    with pytest.raises(ValueError, match='Conv2d has no gates'):
        find_loop_backbone(nn.ModuleDict(dict(backbone=nn.Conv2d(3, 3, 1))).backbone)
    model = DRResNet(16).train()
    with LoopRecorder(model), pytest.raises(ValueError, match='training mode, allowed: evaluation'):
        model(torch.zeros(2, 3, 16, 16))


def test_figures_show_the_given_numbers(tmp_path) -> None:
    times = LoopTimes({'a': 2, 'b': 1}, {'a': np.array([0, 2, 1, 2]), 'b': np.array([1, 1, 0, 1])})
    figure = plot_loop_times(times)
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars == [0, 0.5, 0, 0.5]
    assert 'mean 2.00, standard deviation 1.00' in figure.axes[0].get_title()
    shares = [bar.get_width() for bar in figure.axes[1].patches]
    assert shares == [0.25, 0.25, 0.5, 0.25, 0.75, 0]

    red, blue = (np.full((4, 6, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250)))
    figure = plot_easy_and_hard([(red, 1)], [(blue, 3)], 3)
    assert [axes.get_xlabel() for part in figure.subfigs for axes in part.axes] == ['1', '3']
    save_figure(figure, tmp_path / 'sheet.png')
    with Image.open(tmp_path / 'sheet.png') as sheet:
        pixels = np.asarray(sheet.convert('RGB'))
    rows = [np.flatnonzero((pixels == colour).all(2).any(1)) for colour in ((250, 0, 0), (0, 0, 250))]
    # easy images are above hard ones
    assert len(rows[0]) > 20 and len(rows[1]) > 20 and rows[0].max() < rows[1].min()
    assert len(plot_easy_and_hard([(red, 1)], [], 3).subfigs) == 1

    gate = GateMaps('a', 1, maps_of([[0, 2], [5, 7]]), maps_of([[3, 5], [1, 9]]))
    figure = plot_gate_maps([gate])
    lines = [line.get_ydata().tolist() for axes in figure.axes for line in axes.lines]
    assert lines == [[1, 6], [4, 5], [1, 1], [1, 16]]
    assert figure.axes[0].get_title().startswith('a, iteration 2: discrepancy')


# forced decisions


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('skip', [True, False])
def test_loops_run_as_often_as_forced_and_only_within_the_context(skip: bool, deploy: bool) -> None:
    model, x = tiny(), images(4)
    with torch.no_grad():
        free = model(x)[0]
    if deploy:
        model.switch_to_deploy()
    set_skip(model, skip)
    forced = {'layer2.1': [0, 2, 1, 2], 'layer3.2': [3, 0, 0, 1]}
    with forced_iterations(model, forced), LoopRecorder(model) as recorder, torch.no_grad():
        for _ in range(2):
            batch = model(x)[0]
    times = recorder.times()
    for name, counts in forced.items():
        assert times.counts[name].tolist() == 2 * counts
    with forced_iterations(model, {name: counts[2:3] for name, counts in forced.items()}), torch.no_grad():
        torch.testing.assert_close(model(x[2:3])[0], batch[2:3])
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], free)


@pytest.mark.parametrize('skip', [True, False])
def test_the_first_iteration_is_forced_where_no_gate_decides_on_it(skip: bool) -> None:
    model = tiny(gate_position='after')
    set_skip(model, skip)
    with forced_iterations(model, {'layer3.2': [3, 1, 2]}), LoopRecorder(model) as recorder, torch.no_grad():
        model(images(3))
    assert recorder.times().counts['layer3.2'].tolist() == [3, 1, 2]
    message = r'iterations of layer3.2 are \[0\], allowed: from 1 to 3'
    with pytest.raises(ValueError, match=message), forced_iterations(model, {'layer3.2': [0]}):
        pass


def test_forced_iterations_that_do_not_fit_are_rejected() -> None:
    model = tiny()
    for iterations, message in (
        ({'layer9': [1]}, "iterations of 'layer9', allowed: layer2.1, layer2.2, layer3.1, layer3.2"),
        ({'layer2.1': [3]}, r'iterations of layer2.1 are \[3\], allowed: from 0 to 2'),
        ({'layer2.1': []}, r'iterations of layer2.1 are \[\], allowed'),
    ):
        with pytest.raises(ValueError, match=message), forced_iterations(model, iterations):
            pass
    with forced_iterations(model, {'layer2.1': [1, 2]}), torch.no_grad():
        with pytest.raises(ValueError, match='layer2.1 has iterations of 2 samples and got 3'):
            model(images(3))
    assert not any(block._forward_pre_hooks for block in model.loop_blocks().values())


def test_spread_iterations_have_the_rate_whatever_the_batch() -> None:
    limits = {f'layer3.{i}': 3 for i in range(7)} | {'layer4.1': 2}
    for batch_size in (1, 16):
        spread = spread_iterations(limits, batch_size, 0.7)
        assert list(spread) == list(limits) and {len(own) for own in spread.values()} == {batch_size}
        counts = torch.tensor([spread[f'layer3.{i}'] for i in range(7)])
        for k in (1, 2, 3):
            assert (counts >= k).sum() == round(7 * batch_size * 0.7**k)
    total = sum(map(sum, spread.values())) / 16
    assert total == pytest.approx(7 * expected_iterations(0.7, 3) + expected_iterations(0.7, 2), abs=0.1)
    assert spread != spread_iterations(limits, 16, 0.7, seed=1)
    assert set(spread_iterations(limits, 2, 1)['layer3.1']) == {3}
    with pytest.raises(ValueError, match='rate=1.5, allowed'):
        spread_iterations(limits, 2, 1.5)


@pytest.mark.parametrize('gate_position', ['before', 'after'])
def test_average_multiply_adds_equal_those_executed(gate_position: str) -> None:
    model, x = tiny(gate_position=gate_position).float(), images(6).float()
    model.switch_to_deploy()  # leaves convolutions and the linear layers of gates
    blocks = model.loop_blocks()
    first = blocks['layer2.1'].first_gated
    spread = spread_iterations({name: block.num_iterations - first for name, block in blocks.items()}, 6, 0.6)
    spread = {name: [first + count for count in own] for name, own in spread.items()}
    with forced_iterations(model, spread), LoopRecorder(model) as recorder, torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(x)
    average = measure_loops(model, x[:1]).average(recorder.times().rates())
    # FlopCounterMode counts a multiply-add as two operations, and leaves out the pooling of the gates
    assert counter.get_total_flops() / 2 / 6 == pytest.approx(average, rel=0.01)
