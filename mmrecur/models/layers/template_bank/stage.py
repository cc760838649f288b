"""Stages that own the template banks of their blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.template_bank.bank import TemplateBank, check_rows
from mmrecur.models.layers.template_bank.blocks import WideBasicBlock, WideBottleneck
from mmrecur.models.layers.template_bank.conv import TemplateConv2d

#: A layer in a stage: the index of its block and its attribute there, such as ``(1, 'conv2')``.
LayerPosition = tuple[int, str]


class TemplateStage(Stage):
    """A stage that runs its blocks in order and owns the banks that their layers share.

    The blocks are named ``0``, ``1``, ...; the banks have the names given in ``groups``.

    Args:
        blocks (Sequence[nn.Module]): The blocks. Layers that share are replaced, in place.
        groups (Mapping[str, Sequence[LayerPosition]]): For each bank, its name and its layers.
        num_templates (int, str or None): Templates per bank, see :class:`SWRN`.
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.
        tied_layers (Mapping[str, Sequence[int]], optional): For each bank with tied layers, the row of
            coefficients of each layer, see :class:`TemplateBank`. Defaults to None.
        with_cp (bool): Recompute each block in the backward pass to save memory. Defaults to False.

    Raises:
        ValueError: If ``tied_layers`` names an unknown bank or has wrong rows.
    """

    def __init__(
        self,
        blocks: Sequence[WideBasicBlock | WideBottleneck],
        groups: Mapping[str, Sequence[LayerPosition]],
        num_templates: int | str | None,
        coefficient_init: str = 'orthogonal',
        tied_layers: Mapping[str, Sequence[int]] | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp
        self.groups = {} if num_templates is None else {k: list(v) for k, v in groups.items() if v}
        unknown = set(tied_layers or {}) - set(self.groups)
        if unknown:
            allowed = ', '.join(self.groups) or 'none, nothing is shared'
            raise ValueError(f'tied_layers of {", ".join(sorted(unknown))}, allowed: {allowed}')
        for name, positions in self.groups.items():
            layers = [getattr(blocks[block], layer) for block, layer in positions]
            rows = (tied_layers or {}).get(name)
            if rows is not None:
                check_rows(f'tied_layers: {name}', rows, len(layers))
            num_rows = len(layers) if rows is None else max(rows) + 1
            count = num_rows if num_templates == 'per_layer' else min(num_templates, num_rows)
            bank = TemplateBank(len(layers), count, layers[0].weight.shape, coefficient_init, rows)
            self.add_module(name, bank)
            for index, ((block, layer), conv) in enumerate(zip(positions, layers)):
                options = dict(stride=conv.stride, padding=conv.padding)
                setattr(blocks[block], layer, TemplateConv2d(bank, index, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Generate the weights of all banks once and run the blocks.

        Args:
            x (Tensor): Shape (N, C_in, H, W).

        Returns:
            Tensor: Shape (N, C_out, H / stride, W / stride).
        """
        weights: dict[LayerPosition, Tensor] = {}
        for name, positions in self.groups.items():
            # outside the checkpointed blocks, so that the backward pass does not generate them again
            generated = getattr(self, name)()
            weights.update((position, generated[i]) for i, position in enumerate(positions))
        for i, block in enumerate(self.blocks):
            block_weights = [weights.get((i, layer)) for layer in block.SHAREABLE]
            x = run_step(block, self.with_cp, block, x, block_weights)
        return x

    def switch_to_deploy(self) -> None:
        """Replace shared convolutions by plain ones, fuse the norms and drop the banks, in place."""
        for block in self.blocks:
            block.switch_to_deploy()
        for name in self.groups:
            delattr(self, name)
        self.groups = {}
