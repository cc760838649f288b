"""Modules that run blocks one after the other and can be indexed like a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn


class BlockSequence(nn.Module):
    """Base of modules whose blocks can be counted, iterated over and indexed, as those of ``nn.Sequential``.

    ``model.layer4[-1]`` is the last block of a stage: what tools for class activation maps ask for.

    Attributes:
        blocks (Sequence[nn.Module]): The blocks in order, which a subclass provides.
    """

    blocks: Sequence[nn.Module]

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.blocks)

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        """A block, counted from the end if ``index`` is negative; of a slice the list."""
        return list(self.blocks)[index]

    def block_parts(self) -> list[list[nn.Module]]:
        """What belongs to each block, for layer-wise learning rates.

        Returns:
            list[list[nn.Module]]: For each block the modules with its parameters. What blocks share is with
            the first of them; a part that a later block names again belongs to that one.
        """
        parts = [[block] for block in self.blocks]
        parts[0].insert(0, self)
        return parts


class Stage(BlockSequence):
    """A stage whose blocks are its children ``0``, ``1``, ...

    Args:
        blocks (Sequence[nn.Module]): The blocks.

    Attributes:
        num_blocks (int): Their number.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_blocks = len(blocks)
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)

    @property
    def blocks(self) -> list[nn.Module]:
        """list[nn.Module]: The blocks in order."""
        return [getattr(self, str(i)) for i in range(self.num_blocks)]
