"""Stages that own the filter bases of their blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.filter_basis.basis import BasisConv2d, FilterBasis, orthogonal_init
from mmrecur.models.layers.filter_basis.factorized import FactorizedConv2d


class BasisStage(Stage):
    """A stage that runs its blocks in order and owns the bases that they share.

    The blocks are named ``0``, ``1``, ...; the bases are in ``basis``, under the name of the convolution
    that reads them: ``basis.conv2.weight``.

    Args:
        blocks (Sequence[nn.Module]): The blocks.
        bases (Mapping[str, FilterBasis]): The bases by name. Those whose filters have the same number of
            entries are initialised orthonormal to each other.
        with_cp (bool): Recompute each block in the backward pass to save memory. Defaults to False.

    Attributes:
        basis (nn.ModuleDict, optional): The bases; None if there are none.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], bases: Mapping[str, FilterBasis], with_cp: bool = False
    ) -> None:
        super().__init__(blocks)
        self.basis = nn.ModuleDict(bases) if bases else None
        self.with_cp = with_cp
        for group in group_by_filter_size(bases.values()):
            orthogonal_init(group)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks.

        Args:
            x (Tensor): Shape (N, C_in, H, W).

        Returns:
            Tensor: Output of the last block.
        """
        for block in self.blocks:
            x = run_step(block, self.with_cp, block, x)
        return x

    def factorized(self) -> Iterable[tuple[str, FactorizedConv2d]]:
        """Yield the factorised convolutions of the blocks with their names in the stage."""
        for name, module in self.named_modules():
            if isinstance(module, FactorizedConv2d):
                yield name, module

    def switch_to_deploy(self, form: str = 'auto') -> None:
        """Replace shared convolutions by plain ones and fuse the norms, in place.

        Args:
            form (str): Inference form of factorised convolutions, see :meth:`FactorizedConv2d.materialise`.
                Defaults to 'auto'.
        """
        for block in self.blocks:
            for name, child in list(block.named_children()):
                if isinstance(child, (BasisConv2d, FactorizedConv2d)):
                    setattr(block, name, child.materialise(form))
            block.switch_to_deploy()


def share_convolutions(
    blocks: Sequence[nn.Module], names: Iterable[str], relaxation_rank: int = 0
) -> dict[str, FilterBasis]:
    """Replace convolutions of several blocks, in place, by convolutions that share their filters.

    Each convolution keeps its stride. Convolutions of another shape than that of the last block stay as they
    are.

    Args:
        blocks (Sequence[nn.Module]): The blocks.
        names (Iterable[str]): Attributes to replace, such as ``'conv2'``.
        relaxation_rank (int): Rank of the residual of each convolution, see :class:`BasisConv2d`. Defaults to
            0, no residual.

    Returns:
        dict[str, FilterBasis]: The shared filters by attribute, to be owned by the stage of the blocks.
    """
    bases = {}
    for name in names if blocks else ():
        filters, channels, size, _ = shape = getattr(blocks[-1], name).weight.shape
        bases[name] = FilterBasis(filters, channels, size)
        for block in blocks:
            conv = getattr(block, name)
            if conv.weight.shape == shape:
                shared = BasisConv2d(bases[name], conv.stride[0], relaxation_rank=relaxation_rank)
                setattr(block, name, shared)
    return bases


def group_by_filter_size(bases: Iterable[FilterBasis]) -> list[list[FilterBasis]]:
    """Group bases by the number of entries of a filter; within a group, filters can be orthonormal."""
    groups: dict[int, list[FilterBasis]] = {}
    for basis in bases:
        groups.setdefault(basis.weight.shape[1:].numel(), []).append(basis)
    return list(groups.values())
