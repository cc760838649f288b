"""Stages: modules that run blocks one after the other and can be indexed like a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step


class BlockSequence(nn.Module):
    """Base of modules whose blocks can be counted, iterated over and indexed like those of ``nn.Sequential``.

    ``model.layer4[-1]`` is the last block of a stage, the notation that tools for class activation maps use.

    Attributes:
        blocks (Sequence[nn.Module]): The blocks in order. A subclass provides them.
    """

    blocks: Sequence[nn.Module]

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.blocks)

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        """Return one block, or a list of blocks for a slice. Negative indices count from the end."""
        return list(self.blocks)[index]

    def block_parts(self) -> list[list[nn.Module]]:
        """Group the modules by block, for layer-wise learning rates.

        Returns:
            list[list[nn.Module]]: For each block, the modules that hold its parameters. Modules that several
            blocks share are listed with the first block. A module that is listed again with a later block
            belongs to the later one.
        """
        parts = [[block] for block in self.blocks]
        parts[0].insert(0, self)
        return parts


class Stage(BlockSequence):
    """Blocks that run one after the other. They are the children ``0``, ``1``, ...

    Args:
        blocks (Sequence[nn.Module]): The blocks.
        with_cp (bool): Recompute each block in the backward pass. Defaults to False.

    Attributes:
        num_blocks (int): Number of blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], with_cp: bool = False) -> None:
        super().__init__()
        self.num_blocks = len(blocks)
        self.with_cp = with_cp
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)

    @property
    def blocks(self) -> list[nn.Module]:
        """list[nn.Module]: The blocks in order."""
        return [getattr(self, str(i)) for i in range(self.num_blocks)]

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks: (N, C_in, H, W) to (N, C_out, H_out, W_out)."""
        for block in self.blocks:
            x = run_step(block, self.with_cp, block, x)
        return x
