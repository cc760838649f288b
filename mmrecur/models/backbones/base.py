"""What every backbone of this package promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrecur.checks import check_flag, check_int
from mmrecur.models.deployable import Deployable
from mmrecur.models.layers.common.stage import BlockSequence


def make_norm_layer(norm_cfg: dict) -> Callable[[int], nn.Module]:
    """Turn a norm config into the factory that layers take.

    Args:
        norm_cfg (dict): As in MMCV, e.g. ``dict(type='BN', requires_grad=True)``.

    Returns:
        Callable: Builds the norm for a number of channels.

    Raises:
        TypeError: If ``norm_cfg`` is no dict with a type.
        ValueError: If the type is not registered or an argument is wrong.
    """
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise TypeError(
            f"norm_cfg={norm_cfg!r}, allowed: a dict with a type, e.g. dict(type='BN'), 'SyncBN', 'GN'"
        )

    def norm_layer(channels: int) -> nn.Module:
        try:
            return build_norm_layer(norm_cfg, channels)[1]
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(
                f'norm_cfg={norm_cfg!r} builds no norm of {channels} channels: {error}. Allowed: a norm '
                "registered with MMEngine, e.g. dict(type='BN'), dict(type='GN', num_groups=8)"
            ) from error

    return norm_layer


class Backbone(Deployable, BaseModule):
    """Base of the backbones: arguments, freezing, evaluation of norms, inference form.

    A subclass builds modules and calls :meth:`_freeze` when done. Its stages are numbered from 1;
    stage 0 is the stem.

    Args:
        num_stages (int): Stages after the stem that the architecture has.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, 0 for the first after the stem. Stages behind the
            last one are not built: none of their parameters would ever get a gradient. Defaults to
            (0, 1, 2, 3).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages; frozen
            parts keep their parameters and run in evaluation mode. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass to save memory. Defaults to False.
        init_cfg (dict or list[dict], optional): MMEngine initialisers. None is Kaiming normal for
            convolutions and constants for norms; these also come first when all that is given is a
            checkpoint (``Pretrained``), so that what the checkpoint lacks starts well. Defaults to None.

    A subclass also declares what a config that uses it needs; ``mmrecur.apis.swap_backbone`` reads it.

    Attributes:
        architectures (dict[str, dict]): Names of the family for ``tools/swap_backbone.py``, such as
            ``'rla-resnet50'``, and the arguments that each fixes. What a name leaves open is taken over
            from the backbone that is replaced.
        classifier_options (dict): Arguments that the backbone of a classifier gets besides.
        required_hooks (tuple[dict]): Hooks that its training needs, as in ``custom_hooks``. A property if
            that depends on the arguments.
        required_paramwise_cfg (Mapping): What ``optim_wrapper.paramwise_cfg`` has to hold; likewise.
        max_stages (int): Number of stages of the architecture, the stem excluded.
        num_stages (int): Number of stages that are built, the last of ``out_indices`` included.
        out_channels (tuple[int]): Channels of each output.
        out_strides (tuple[int]): Stride of each output with respect to the image.
        deployed (bool): Whether the model is in its inference form.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message says what is allowed.
    """

    architectures: ClassVar[dict[str, dict]] = {}
    classifier_options: ClassVar[dict] = {}
    required_hooks: tuple[dict, ...] = ()
    required_paramwise_cfg: Mapping[str, Any] = MappingProxyType({})
    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    _parameter_layers: tuple[dict[str, int], int] | None = None

    def __init__(
        self,
        num_stages: int,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(self._with_default_init(init_cfg))
        check_int('in_channels', in_channels, 1)
        check_int('frozen_stages', frozen_stages, -1, num_stages)
        check_flag(norm_eval=norm_eval, with_cp=with_cp)
        self.in_channels = in_channels
        self.out_indices = self._checked_out_indices(out_indices, num_stages)
        self.max_stages = num_stages
        self.num_stages = self.out_indices[-1] + 1
        self.frozen_stages = frozen_stages
        self.norm_cfg = dict(type='BN', requires_grad=True) if norm_cfg is None else norm_cfg
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    @staticmethod
    def _with_default_init(init_cfg: dict | list[dict] | None) -> list[dict]:
        """The initialisers to run: the default ones if none is given but for checkpoints."""
        given = [init_cfg] if isinstance(init_cfg, dict) else [] if init_cfg is None else init_cfg
        is_list = isinstance(given, (list, tuple))
        if not is_list or not all(isinstance(cfg, dict) and 'type' in cfg for cfg in given):
            raise TypeError(f'init_cfg={init_cfg!r}, allowed: None, a dict with a type, a list of them')
        if any('checkpoint' not in cfg for cfg in given):
            return list(given)
        return [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            *given,
        ]

    @staticmethod
    def _checked_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
        """Strictly increasing stage indices, as a tuple."""
        message = (
            f'out_indices={out_indices!r}, allowed: one or more increasing integers from 0 to '
            f'{num_stages - 1}'
        )
        if isinstance(out_indices, (str, bytes)) or not isinstance(out_indices, Sequence):
            raise TypeError(message)
        indices = tuple(out_indices)
        if (
            not indices
            or not all(type(i) is int and 0 <= i < num_stages for i in indices)
            or any(a >= b for a, b in zip(indices, indices[1:]))
        ):
            raise ValueError(message)
        return indices

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """Modules of a stage.

        Args:
            stage (int): 0 for the stem, i for the i-th stage.

        Returns:
            Iterable[nn.Module]: Every module whose parameters belong to the stage alone, in the order in
            which they compute.
        """
        raise NotImplementedError

    def stage_layers(self, stage: int) -> list[list[nn.Module]]:
        """Modules of a stage by layer, for layer-wise learning rates.

        Args:
            stage (int): 0 for the stem, i for the i-th stage.

        Returns:
            list[list[nn.Module]]: For each block the modules with its parameters; one list where the stage
            has no blocks. Of modules that overlap the later one counts. What stands in front of the blocks
            is with the first of them; what stands behind them is left out.
        """
        modules = list(self.stage_modules(stage))
        for i, module in enumerate(modules):
            if isinstance(module, BlockSequence):
                layers = module.block_parts()
                layers[0] += modules[:i]
                return layers
        return [modules]

    def parameter_layers(self) -> tuple[dict[str, int], int]:
        """The layer that each parameter belongs to, for layer-wise learning rates.

        Layer 0 is the stem; then each block is one, and so is a stage without blocks, such as the last
        convolution of a MobileNetV2. The last layer is what stands behind the blocks: the backbone's last
        norms, necks and heads. What several blocks share (recurrent cells, filter bases, template banks)
        belongs to the first of them, since its change reaches every one; the norms that a cell or a loop
        has for each step belong to the block of that step.

        Returns:
            tuple[dict[str, int], int]: Layers by the names of parameters, and the number of layers.
        """
        layers: dict[int, int] = {}
        count = 0
        for stage in range(self.num_stages + 1):
            found = {}
            for parts in self.stage_layers(stage):
                found.update((id(p), count) for part in parts for p in part.parameters())
                count += 1
            layers = found | layers  # of what stages share, the first counts
        named = self.named_parameters(remove_duplicate=False)
        return {name: layers.get(id(p), count) for name, p in named}, count + 1

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer that a parameter belongs to, as mmpretrain's
        ``LearningRateDecayOptimWrapperConstructor`` asks for it.

        Args:
            param_name (str): The parameter's name in the model.
            prefix (str): The backbone's name in it, with a dot: ``'backbone.'``. Defaults to ''.

        Returns:
            tuple[int, int]: The layer and the number of layers, see :meth:`parameter_layers`. What is not
            in the backbone belongs to the last layer.
        """
        name = param_name[len(prefix) :] if param_name.startswith(prefix) else None
        # kept, since a constructor asks for one parameter after the other; anew for names that are new
        if self._parameter_layers is None or (name is not None and name not in self._parameter_layers[0]):
            self._parameter_layers = self.parameter_layers()
        layers, count = self._parameter_layers
        return layers.get(name, count - 1), count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: The map of each stage in ``out_indices``, shape
            (N, C_i, H / stride_i, W / stride_i), with sizes rounded up.
        """
        x, state = self._run_stem(x), None
        outputs = []
        for index in range(self.num_stages):
            x, state = self._run_stage(index, x, state)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(self._finish_outputs(outputs, state))

    def _run_stem(self, x: Tensor) -> Tensor:
        """Compute the input of the first stage."""
        raise NotImplementedError

    def _run_stage(self, index: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Run stage ``index``, 0 for the first; a recurrent state passes through it, None at first."""
        return getattr(self, f'layer{index + 1}')(x), state

    def _finish_outputs(self, outputs: list[Tensor], state: Any) -> list[Tensor]:
        """Apply what follows the last stage, such as a final norm."""
        return outputs

    def _frozen_modules(self) -> Iterable[nn.Module]:
        for stage in range(min(self.frozen_stages, self.num_stages) + 1):
            yield from self.stage_modules(stage)

    def _freeze(self) -> None:
        """Freeze the parameters of frozen stages."""
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode, but for frozen stages and, with ``norm_eval``, batch norms.

        A model in its inference form stays in evaluation mode.
        """
        super().train(mode)
        if self.training:
            for module in self._frozen_modules():
                module.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def init_weights(self) -> None:
        """Run the initialisers; a model in its inference form keeps its weights."""
        if not self.deployed:
            super().init_weights()

    def __repr__(self) -> str:
        # MMEngine appends init_cfg to every submodule; torch's form is enough
        return nn.Module.__repr__(self)
