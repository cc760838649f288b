"""Filter bases: the equations of the paper, parameter counts, and sharing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.models.backbones import DenseNetShared, MobileNetV2Shared, ResNetShared, ResNeXtShared
from mmrecur.models.layers import FactorizedConv2d, FilterBasis, orthogonality_penalty
from mmrecur.models.losses import BasisGroup, OrthogonalityLoss
from tests.helpers import randomise_norms

COUNTS = Path(__file__).parents[1] / 'data' / 'parameters.json'
NETWORKS = {
    'imagenet resnet34': ('ResNetShared', 1000, dict(depth=34, share=None)),
    'imagenet resnet34-s48u1 (two bases)': (
        'ResNetShared', 1000, dict(depth=34, shared_rank=48, unique_rank=1, bases=2)
    ),
    'imagenet resnet34-s48u1 (one basis)': ('ResNetShared', 1000, dict(depth=34, bases=1)),
    'resnet50-shared': ('ResNetShared', 1000, dict(depth=50)),
    'resnet50-shared++': ('ResNetShared', 1000, dict(depth=50, share='double')),
    'resnet101-shared': ('ResNetShared', 1000, dict(depth=101)),
    'resnet101-shared++': ('ResNetShared', 1000, dict(depth=101, share='double')),
    'mobilenetv2': ('MobileNetV2Shared', 1000, dict(share=None)),
    'mobilenetv2-shared': ('MobileNetV2Shared', 1000, dict()),
    'mobilenetv2-shared++': ('MobileNetV2Shared', 1000, dict(share='double', attention='eca')),
    'cifar10 resnet32': ('ResNetShared', 10, dict(depth=32, shared_rank=0)),
    'cifar10 resnet32-s16u1++': ('ResNetShared', 10, dict(depth=32)),
    'cifar10 resnet32-s8u1': ('ResNetShared', 10, dict(depth=32, shared_rank=8, bases=1)),
    'cifar10 resnet56': ('ResNetShared', 10, dict(depth=56, share=None)),
    'cifar10 resnet56-s16u1': ('ResNetShared', 10, dict(depth=56, bases=1)),
    'cifar10 resnet56-s16u1++': ('ResNetShared', 10, dict(depth=56)),
    'cifar100 resnet34': ('ResNetShared', 100, dict(depth=34, stem='cifar', share=None)),
    'cifar100 resnet34-s32u1': ('ResNetShared', 100, dict(depth=34, stem='cifar')),
    'cifar100 densenet121': ('DenseNetShared', 100, dict(shared_rank=0)),
    'cifar100 densenet121-s16u1': ('DenseNetShared', 100, dict()),
    'cifar100 resnext50': ('ResNeXtShared', 100, dict(shared_rank=0)),
    'cifar100 resnext50-s64u4': ('ResNeXtShared', 100, dict()),
}  # fmt: skip


def count(kind: str, classes: int, **arguments) -> int:
    with torch.device('meta'):
        model = MODELS.build(dict(type=f'mmrecur.{kind}', **arguments))
    return sum(p.numel() for p in model.parameters()) + classes * (model.out_channels[-1] + 1)


@pytest.mark.parametrize('name', NETWORKS)
def test_parameter_counts_equal_the_authors(name: str) -> None:
    expected = json.loads(COUNTS.read_text())['resnet_shared (author implementation)'][name]
    kind, classes, arguments = NETWORKS[name]
    assert count(kind, classes, **arguments) == expected


def test_sharing_all_convolutions_gives_the_parameters_of_the_paper() -> None:
    assert round(count('ResNetShared', 1000, depth=50, share='all') / 1e6, 2) == 16.02


def basis_and_conv(unique_rank: int = 2, **options) -> tuple[FilterBasis, FactorizedConv2d]:
    torch.manual_seed(0)
    basis = FilterBasis(5, 6)
    conv = FactorizedConv2d(basis, 7, unique_rank, **options)
    randomise_norms(conv)
    return basis, conv


@pytest.mark.parametrize('unique_rank', [0, 2])
@pytest.mark.parametrize('stride, dilation', [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize('mode', ['train', 'eval', 'no norm'])
def test_factorised_convolution_follows_the_paper(
    unique_rank: int, stride: int, dilation: int, mode: str
) -> None:
    """Compare output, gradients and running statistics with concatenated maps (equation 8)."""
    options = dict(norm_layer=None) if mode == 'no norm' else {}
    basis, conv = basis_and_conv(unique_rank, stride=stride, dilation=dilation, **options)
    model = nn.ModuleList([basis, conv]).double().train(mode != 'eval')
    slow = copy.deepcopy(model)
    x = torch.randn(3, 6, 9, 8, dtype=torch.double)
    results = []
    for pair, joined in ((model, False), (slow, True)):
        image = x.clone().requires_grad_()
        if joined:
            maps = [F.conv2d(image, pair[0].weight, None, stride, dilation, dilation)]
            if unique_rank:
                maps.insert(0, F.conv2d(image, pair[1].unique.weight, None, stride, dilation, dilation))
            maps = torch.cat(maps, 1)
            output = F.conv2d(maps if mode == 'no norm' else pair[1].norm(maps), pair[1].coefficients.weight)
        else:
            output = pair[1](image)
        (output * output.detach().cos()).sum().backward()
        grads = {name: p.grad for name, p in pair.named_parameters()}
        results.append(dict(output=output, image=image.grad, **grads, **dict(pair.named_buffers())))
    assert results[0].keys() == results[1].keys()
    for key, value in results[1].items():
        torch.testing.assert_close(results[0][key], value, rtol=1e-9, atol=1e-9)


def test_basis_accumulates_the_gradients_of_all_layers() -> None:
    basis, first = basis_and_conv()
    second = FactorizedConv2d(basis, 6, 1)
    x = torch.randn(2, 6, 8, 8)
    grads = []
    for convs in ([first], [second], [first, second]):
        basis.weight.grad = None
        sum(conv(x).sin().sum() for conv in convs).backward()
        grads.append(basis.weight.grad)
    torch.testing.assert_close(grads[0] + grads[1], grads[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('form', ['dense', 'factorized', 'auto'])
def test_inference_forms_are_exact_and_auto_counts(form: str) -> None:
    for rank, cheaper in ((5, 'factorized'), (30, 'dense')):
        torch.manual_seed(0)
        conv = FactorizedConv2d(FilterBasis(rank, 16), 32, 1)
        randomise_norms(conv)
        conv.eval()
        plain = conv.materialise(form)
        x = torch.randn(2, 16, 7, 9)
        with torch.no_grad():
            torch.testing.assert_close(plain(x), conv(x), rtol=1e-4, atol=1e-5)
        is_dense = isinstance(plain, nn.Conv2d)
        assert is_dense == ((cheaper if form == 'auto' else form) == 'dense')
        # 16 * 9 entries of a filter, 32 outputs
        assert conv.multiply_adds() == dict(dense=32 * 144, factorized=(rank + 1) * (144 + 32))


def test_penalty_is_equation_7_and_its_gradient() -> None:
    for shape in ((4, 9), (9, 4)):
        matrix = torch.randn(*shape, dtype=torch.double, requires_grad=True)
        expected = sum(
            (float(i == j) - a @ b) ** 2
            for i, a in enumerate(matrix.detach())
            for j, b in enumerate(matrix.detach())
        )
        assert orthogonality_penalty(matrix).item() == pytest.approx(expected.item())
        assert torch.autograd.gradcheck(orthogonality_penalty, matrix, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(orthogonality_penalty, matrix)


def test_penalty_is_computed_in_single_precision_under_autocast() -> None:
    matrix = FilterBasis(16, 16).matrix.detach()
    matrix[0] *= 1 + 1e-4
    with torch.autocast('cpu', torch.bfloat16):
        penalty = orthogonality_penalty(matrix)
    assert penalty.item() == pytest.approx(4e-8, rel=0.05) and penalty.dtype == torch.float32


def test_hooks_on_the_gradients_of_norm_and_coefficients_are_called() -> None:
    for name in ('norm', 'coefficients'):
        _, conv = basis_and_conv()
        called = []
        conv.get_submodule(name).register_full_backward_hook(lambda *args, called=called: called.append(args))
        conv(torch.randn(2, 6, 8, 8, requires_grad=True)).sum().backward()
        assert len(called) == 1


@pytest.mark.parametrize(
    'build',
    [
        lambda: ResNetShared(18, base_channels=8, shared_rank=4),
        lambda: MobileNetV2Shared(width_mult=0.25),
        lambda: DenseNetShared(growth_rate=4, stem_channels=8, shared_rank=4),
        lambda: ResNeXtShared(50, base_channels=8, groups=4, shared_rank=8),
    ],
)
def test_switch_to_deploy_works_twice_on_every_module(build) -> None:
    """Tools of other libraries call ``switch_to_deploy`` on every module."""
    torch.manual_seed(0)
    model = build()
    randomise_norms(model)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(x)[-1]
        for _ in range(2):
            for module in model.modules():
                if hasattr(module, 'switch_to_deploy'):
                    module.switch_to_deploy()
        torch.testing.assert_close(model(x)[-1], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_loss_is_the_mean_over_all_inner_products() -> None:
    shared, other = torch.randn(3, 8), torch.randn(2, 8)
    unique = torch.randn(1, 8)
    groups = [BasisGroup([shared, other], [unique]), BasisGroup([shared], [])]

    def deviation(matrix: Tensor) -> Tensor:
        return (matrix @ matrix.T - torch.eye(len(matrix))).square().sum()

    first, second = deviation(torch.cat([shared, other])), deviation(shared)
    assert torch.allclose(OrthogonalityLoss(2.0)(groups), 2 * (first + second) / (25 + 9))
    assert torch.allclose(OrthogonalityLoss(2.0, average=False)(groups), 2 * (first + second))
    with_unique = deviation(torch.cat([shared, other, unique]))
    assert torch.allclose(
        OrthogonalityLoss(2.0, with_unique=True)(groups), 2 * (with_unique + second) / (36 + 9)
    )


def test_initialisers_keep_the_bases_orthonormal() -> None:
    model = ResNetShared(34, base_channels=16, shared_rank=12)
    model.init_weights()
    assert len(model.basis_groups()) == 4 and len(model.basis_groups()[0].shared) == 2
    assert model.auxiliary_losses()['loss_ortho'] < 1e-9
    # Kaiming normal for the others: std = sqrt(2 / (out_channels * kernel area))
    weight = getattr(model.layer4, '0').conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * len(weight))) ** 0.5, rel=0.1)


def test_groups_contain_filters_of_one_size() -> None:
    """Both bases of basic blocks form one group; filters of different sizes form several."""
    groups = ResNetShared(20, base_channels=8, shared_rank=4, unique_rank=2).basis_groups()
    assert [[tuple(m.shape) for m in group.shared] for group in groups] == [
        [(4, 72)] * 2, [(8, 144)] * 2, [(16, 288)] * 2
    ]  # fmt: skip
    # two convolutions in each of two blocks
    assert [[tuple(m.shape) for m in group.unique] for group in groups] == [
        [(2, 72)] * 4, [(4, 144)] * 4, [(8, 288)] * 4
    ]  # fmt: skip
    groups = ResNetShared(50, base_channels=8, share='double', out_indices=(0,)).basis_groups()
    assert [tuple(m.shape) for group in groups for m in group.shared] == [(8, 72), (32, 8)]
    assert not ResNetShared(50, base_channels=8, share=None).basis_groups()
    # the fourth dense block reads the basis of the third
    groups = DenseNetShared(growth_rate=4, stem_channels=8, shared_rank=4, last_basis='third').basis_groups()
    assert [len(group.unique) for group in groups] == [6, 12, 24 + 16]


@pytest.mark.parametrize(
    'model',
    [
        ResNetShared(18, base_channels=8, shared_rank=4),
        ResNetShared(50, base_channels=8, share='all'),
        MobileNetV2Shared(width_mult=0.25, share='double'),
        ResNeXtShared(50, base_channels=8, groups=4, shared_rank=8),
    ],
    ids=lambda model: type(model).__name__ + str(getattr(model, 'share', '')),
)
def test_state_dict_has_each_basis_once_and_copies_share_it(model) -> None:
    names = [name for name in model.state_dict() if '.basis.' in name]
    assert len(names) == sum(len(stage.basis) for stage in model.shared_stages()) > 0
    assert all(name.split('.')[1] == 'basis' for name in names)
    twin = copy.deepcopy(model).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = twin(x)[-1]
        for name in names:
            twin.get_parameter(name).zero_()
        assert not torch.equal(twin(x)[-1], before)
        # the original is unchanged
        assert all(model.get_parameter(name).abs().sum() > 0 for name in names)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x)[-1], before)


def test_network_without_sharing_equals_torchvision() -> None:
    models = pytest.importorskip('torchvision.models')
    for depth in (18, 50):
        theirs = getattr(models, f'resnet{depth}')().eval()
        ours = ResNetShared(depth, share=None).eval()
        state = {k: v for k, v in theirs.state_dict().items() if not k.startswith('fc.')}
        ours.load_state_dict(state)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            y = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
            y = theirs.layer4(theirs.layer3(theirs.layer2(y)))
            torch.testing.assert_close(ours(x)[-1], y, rtol=1e-4, atol=1e-4 * y.abs().max().item())


def test_basis_is_frozen_with_the_last_block_that_reads_it() -> None:
    small = dict(growth_rate=4, stem_channels=8, shared_rank=4)
    for last_basis, frozen in (('own', True), ('third', False)):
        model = DenseNetShared(last_basis=last_basis, frozen_stages=3, **small)
        assert model.layer3.basis['conv2'].weight.requires_grad != frozen
        assert not getattr(model.layer3, '0').conv1.weight.requires_grad
    model = DenseNetShared(last_basis='third', frozen_stages=4, **small)
    assert not any(p.requires_grad for p in model.parameters())
    # without the fourth block, the third is its only reader
    model = DenseNetShared(last_basis='third', frozen_stages=3, out_indices=(2,), **small)
    assert not any(p.requires_grad for p in model.parameters())


def test_frozen_bases_get_no_gradient_of_the_penalty() -> None:
    model = ResNetShared(18, base_channels=8, shared_rank=4, frozen_stages=2)
    for group in model.basis_groups():
        group.shared[0].data.mul_(2)
    model.auxiliary_losses()['loss_ortho'].backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert graded == {f'layer{i}.basis.conv{j}.weight' for i in (3, 4) for j in (1, 2)}
    assert all(p.requires_grad for name, p in model.named_parameters() if name in graded)


WRONG = [
    (dict(depth=35), 'depth=35, allowed: 18, 34'),
    (dict(shared_rank=-1), 'shared_rank=-1, allowed: an integer of at least 0'),
    (dict(unique_rank=1.5), 'unique_rank=1.5, allowed'),
    (dict(bases=3), 'bases=3, allowed: 1, 2'),
    (dict(share='double'), "share='double' with depth=34, allowed: 'single', None"),
    (dict(share='most'), "share='most', allowed: None, 'single', 'double', 'all'"),
    (dict(depth=50, shared_rank=16), 'shared_rank=16 with depth=50, allowed: None'),
    (dict(stem='mnist'), "stem='mnist', allowed: 'imagenet', 'cifar'"),
    (dict(basis_norm=1), 'basis_norm=1.*allowed: True or False'),
    (dict(depth=50, basis_norm=False), 'basis_norm=False with depth=50, allowed: True'),
    (dict(loss_ortho=10.0), 'loss_ortho=10.0, allowed: None, or a dict with a type'),
    (dict(loss_ortho=dict(type='mmrecur.OrthogonalityLoss', loss_weight=-1)), 'loss_weight=-1, allowed'),
    (dict(base_channels=0), 'base_channels=0, allowed'),
    (dict(strides=(1, 2)), r'strides=\(1, 2\), allowed: 4 integers of 1 or 2'),
    (dict(depth=20, out_indices=(3,)), r'out_indices=\(3,\), allowed: .* from 0 to 2'),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ResNetShared(**{'depth': 34, **arguments})


def test_wrong_arguments_of_other_classes_are_named() -> None:
    for rank in (6, 96):  # 24 groups would not divide the 128 channels
        with pytest.raises(ValueError, match=f'shared_rank={rank}, allowed: a multiple of base_width=4'):
            ResNeXtShared(shared_rank=rank)
    for factor in (True, 0, float('inf')):
        with pytest.raises(ValueError, match=f'width_mult={factor}, allowed: a positive number'):
            MobileNetV2Shared(width_mult=factor)
    with pytest.raises(ValueError, match="share='all', allowed: None, 'single', 'double'"):
        MobileNetV2Shared(share='all')
    with pytest.raises(ValueError, match="attention='se', allowed: None, 'eca'"):
        MobileNetV2Shared(attention='se')
    with pytest.raises(ValueError, match="attention='eca', allowed: None$"):
        MobileNetV2Shared(share=None, attention='eca')
    with pytest.raises(ValueError, match="last_basis='fourth', allowed: 'own', 'third'"):
        DenseNetShared(last_basis='fourth')
    with pytest.raises(ValueError, match="form='sparse', allowed: 'auto', 'dense', 'factorized'"):
        ResNetShared(18, base_channels=8).switch_to_deploy(form='sparse')
    with pytest.raises(ValueError, match='groups=4 with in_channels=6'):
        FilterBasis(8, 6, groups=4)
