"""What backbones with shared filter bases have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.base import Backbone
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.filter_basis.basis import (
    DEPLOY_FORMS,
    BasisConv2d,
    FactorizedConv2d,
    FilterBasis,
    orthogonal_init,
)
from mmrecur.models.losses import BasisGroup, OwnObjective

#: The paper's objective for the bases.
ORTHOGONALITY: Mapping = MappingProxyType(dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0))


class BasisStage(Stage):
    """A stage: blocks, named ``0``, ``1``, ..., and under ``basis`` the filters they share.

    A basis is named after the convolutions of the blocks that it serves: ``basis.conv2.weight``.

    Args:
        blocks (Sequence[nn.Module]): The blocks, which run one after the other.
        bases (Mapping[str, FilterBasis]): The shared filters that the stage owns. Those with filters of
            one shape start orthonormal to each other.
        with_cp (bool): Recompute each block in the backward pass. Defaults to False.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], bases: Mapping[str, FilterBasis], with_cp: bool = False
    ) -> None:
        super().__init__(blocks)
        self.basis = nn.ModuleDict(bases) if bases else None
        self.with_cp = with_cp
        for group in by_length([*bases.values()]):
            orthogonal_init(group)

    def factorized(self) -> Iterable[tuple[str, FactorizedConv2d]]:
        """Factorised convolutions of the blocks, with their names in the stage."""
        for name, module in self.named_modules():
            if isinstance(module, FactorizedConv2d):
                yield name, module

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).

        Returns:
            Tensor: The last block's output.
        """
        for block in self.blocks:
            x = run_step(block, self.with_cp, block, x)
        return x

    def switch_to_deploy(self, form: str = 'auto') -> None:
        """Give the blocks filters of their own, folded.

        Args:
            form (str): Of factorised convolutions, see :meth:`FactorizedConv2d.deployed`. Defaults to
                'auto'.
        """
        for block in self.blocks:
            for name, child in list(block.named_children()):
                if isinstance(child, (BasisConv2d, FactorizedConv2d)):
                    setattr(block, name, child.deployed(form))
            block.switch_to_deploy()


def share_convolutions(blocks: Sequence[nn.Module], names: Iterable[str]) -> dict[str, FilterBasis]:
    """Make blocks of one shape share convolutions.

    Args:
        blocks (Sequence[nn.Module]): The blocks; their convolutions are replaced.
        names (Iterable[str]): Which, such as ``'conv2'``; all of stride 1.

    Returns:
        dict[str, FilterBasis]: The shared filters by name, for the blocks' stage to own.
    """
    bases = {}
    for name in names if blocks else ():
        filters, channels, size, _ = getattr(blocks[0], name).weight.shape
        bases[name] = FilterBasis(filters, channels, size)
        for block in blocks:
            setattr(block, name, BasisConv2d(bases[name]))
    return bases


def by_length(bases: Sequence[FilterBasis]) -> list[list[FilterBasis]]:
    """Put bases together whose filters have equally many entries and so can be compared."""
    groups: dict[int, list[FilterBasis]] = {}
    for basis in bases:
        groups.setdefault(basis.weight.shape[1:].numel(), []).append(basis)
    return list(groups.values())


class SharedBasisBackbone(OwnObjective, Backbone):
    """Base of the backbones whose blocks share filter bases.

    A subclass calls :meth:`_finish` when all its stages are built.

    Args:
        num_stages (int): Stages after the stem that the architecture has.
        loss_ortho (Mapping, optional): Objective that keeps the bases orthonormal, a loss that takes
            :class:`BasisGroup` s; it needs :class:`AuxiliaryLossHook`. None for none. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        **kwargs: See :class:`Backbone`.
    """

    objective = 'loss_ortho'
    objective_aim = 'the orthogonality of its filter bases'

    stages: list[str]

    def __init__(self, num_stages: int, loss_ortho: Mapping | None = ORTHOGONALITY, **kwargs: object) -> None:
        super().__init__(num_stages, **kwargs)
        self._build_objective(loss_ortho, ORTHOGONALITY)
        self._form = 'auto'

    def _finish(self) -> None:
        """Freeze what is to be frozen; drop an objective that has nothing to act on."""
        self._freeze()
        self._finish_objective(acts=self._bases_learn())

    def _bases_learn(self) -> bool:
        return any(p.requires_grad for stage in self.shared_stages() for p in stage.basis.parameters())

    def shared_stages(self) -> list[BasisStage]:
        """list[BasisStage]: The stages that own bases."""
        stages = [getattr(self, name) for name in self.stages]
        return [stage for stage in stages if isinstance(stage, BasisStage) and stage.basis is not None]

    def basis_groups(self) -> list[BasisGroup]:
        """Filters that should be orthonormal to each other: for each stage those of one shape.

        Returns:
            list[BasisGroup]: The groups, as views of the weights.
        """
        groups = []
        # a stage may read the basis of another
        readers = [m for m in self.modules() if isinstance(m, FactorizedConv2d)]
        for stage in self.shared_stages():
            for bases in by_length([*stage.basis.values()]):
                convs = [conv for conv in readers if conv.basis in bases]
                unique = [conv.unique.matrix for conv in convs if conv.unique is not None]
                groups.append(BasisGroup([basis.matrix for basis in bases], unique))
        return groups

    def objective_input(self) -> list[BasisGroup]:
        """See :class:`OwnObjective`; empty if all bases are frozen, since then perhaps, as a teacher's."""
        return self.basis_groups() if self._bases_learn() else []

    def switch_to_deploy(self, memory_format: torch.memory_format | None = None, form: str = 'auto') -> None:
        """Rewrite the model in place into its fastest exact form for inference.

        Args:
            memory_format (torch.memory_format, optional): See :meth:`Deployable.switch_to_deploy`.
            form (str): What a factorised convolution becomes: ``'dense'``, one convolution;
                ``'factorized'``, basis and coefficients; ``'auto'``, the second where it clearly needs
                fewer multiply-adds. Defaults to 'auto'.

        Raises:
            ValueError: If ``form`` is another one.
        """
        check_choice('form', form, DEPLOY_FORMS)
        self._form = form
        super().switch_to_deploy(memory_format)

    def _switch_to_deploy(self) -> None:
        self._deploy_rest()
        for name in self.stages:
            stage = getattr(self, name)
            if isinstance(stage, BasisStage):
                stage.switch_to_deploy(self._form)
        for stage in self.shared_stages():
            stage.basis = None
        self._drop_objective()

    def _deploy_rest(self) -> None:
        """Fold the norms outside the stages."""
        raise NotImplementedError
