"""Base class of the backbones: common arguments, the loop over stages, freezing and inference form."""

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
    """Build the norm factory that layers take as an argument.

    Args:
        norm_cfg (dict): Norm config as in MMCV, e.g. ``dict(type='BN', requires_grad=True)``.

    Returns:
        Callable: Takes a number of channels and returns a norm. Raises a ValueError if the type is not
        registered or an argument is wrong.

    Raises:
        TypeError: If ``norm_cfg`` is not a dict with a type.
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
                f'norm_cfg={norm_cfg!r} does not build a norm of {channels} channels: {error}. '
                "Allowed: a norm registered with MMEngine, e.g. dict(type='BN') or "
                "dict(type='GN', num_groups=8)"
            ) from error

    return norm_layer


class Backbone(Deployable, BaseModule):
    """Base class of the backbones.

    A subclass builds its modules and then calls :meth:`_freeze`. Stages are numbered from 1, and stage 0 is
    the stem.

    Args:
        num_stages (int): Number of stages of the architecture, not counting the stem.
        in_channels (int): Number of image channels. Defaults to 3.
        out_indices (Sequence[int]): Indices of the stages to return, where 0 is the first stage after the
            stem. Stages after the last index are not built, because their parameters would never get a
            gradient. Defaults to (0, 1, 2, 3).
        frozen_stages (int): -1 freezes nothing, 0 freezes the stem, i freezes the stem and the first i
            stages. Frozen parts keep their parameters and run in evaluation mode. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass to save memory. Defaults to False.
        init_cfg (dict or list[dict], optional): MMEngine initialisers. None uses Kaiming normal for
            convolutions and constants for norms. If only a checkpoint (``Pretrained``) is given, these
            defaults run first and initialise the parameters that the checkpoint lacks. Defaults to None.

    A subclass also declares the settings that its configs need. ``mmrecur.apis.swap_backbone`` reads them.

    Attributes:
        architectures (dict[str, dict]): Arguments by architecture name, such as ``'rla-resnet50'``, for
            ``tools/swap_backbone.py``. Arguments that a name does not fix are copied from the backbone that
            is replaced.
        classifier_options (dict): Additional arguments for the backbone of a classifier.
        required_hooks (tuple[dict]): Hooks that training needs, as in ``custom_hooks``. A property where
            they depend on the arguments.
        required_paramwise_cfg (Mapping): Required entries of ``optim_wrapper.paramwise_cfg``. A property
            where they depend on the arguments.
        max_stages (int): Number of stages of the architecture, not counting the stem.
        num_stages (int): Number of stages that are built, up to the last of ``out_indices``.
        out_channels (tuple[int]): Channels of each output.
        out_strides (tuple[int]): Stride of each output with respect to the image.
        deployed (bool): True once the model is in its inference form.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message lists the allowed values.
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
        """Return the initialisers, preceded by the defaults if at most checkpoints are given."""
        given = [init_cfg] if isinstance(init_cfg, dict) else [] if init_cfg is None else init_cfg
        is_list = isinstance(given, (list, tuple))
        if not is_list or not all(isinstance(cfg, dict) and 'type' in cfg for cfg in given):
            raise TypeError(f'init_cfg={init_cfg!r}, allowed: None, a dict with a type, a list of such dicts')
        if any('checkpoint' not in cfg for cfg in given):
            return list(given)
        return [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            *given,
        ]

    @staticmethod
    def _checked_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
        """Return the stage indices as a tuple. Raise unless they are strictly increasing."""
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
        """Return the modules of a stage.

        Args:
            stage (int): 0 for the stem, i for the i-th stage.

        Returns:
            Iterable[nn.Module]: The modules whose parameters belong to this stage only, in the order of
            execution.
        """
        raise NotImplementedError

    def stage_layers(self, stage: int) -> list[list[nn.Module]]:
        """Return the modules of a stage grouped by layer, for layer-wise learning rates.

        Args:
            stage (int): 0 for the stem, i for the i-th stage.

        Returns:
            list[list[nn.Module]]: One list of modules per block, or a single list if the stage has no blocks.
            A parameter in several lists belongs to the last of them. Modules before the blocks are in the
            first list; modules after the blocks are left out.
        """
        modules = list(self.stage_modules(stage))
        for i, module in enumerate(modules):
            if isinstance(module, BlockSequence):
                layers = module.block_parts()
                layers[0] += modules[:i]
                return layers
        return [modules]

    def parameter_layers(self) -> tuple[dict[str, int], int]:
        """Assign each parameter to a layer, for layer-wise learning rates.

        Layer 0 is the stem. Each block is a layer, and so is each stage without blocks, such as the last
        convolution of a MobileNetV2. The last layer holds everything after the blocks: the final norms of
        the backbone, necks and heads. A module that several blocks share (recurrent cell, filter basis,
        template bank) belongs to the first of these blocks, because changing it affects all of them. The
        norms that a cell or a loop has for each step belong to the block of that step.

        Returns:
            tuple[dict[str, int], int]: Layer index by parameter name, and the number of layers.
        """
        layers: dict[int, int] = {}
        count = 0
        for stage in range(self.num_stages + 1):
            found = {}
            for parts in self.stage_layers(stage):
                found.update((id(p), count) for part in parts for p in part.parameters())
                count += 1
            layers = found | layers  # the first stage that uses a shared parameter counts
        named = self.named_parameters(remove_duplicate=False)
        return {name: layers.get(id(p), count) for name, p in named}, count + 1

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter.

        The ``LearningRateDecayOptimWrapperConstructor`` of mmpretrain calls this method.

        Args:
            param_name (str): Name of the parameter in the model.
            prefix (str): Name of the backbone in the model with a trailing dot: ``'backbone.'``. Defaults
                to ''.

        Returns:
            tuple[int, int]: Layer index and number of layers, see :meth:`parameter_layers`. Parameters
            outside the backbone belong to the last layer.
        """
        name = param_name[len(prefix) :] if param_name.startswith(prefix) else None
        # cached, because constructors ask for one parameter at a time; computed again for unknown names
        if self._parameter_layers is None or (name is not None and name not in self._parameter_layers[0]):
            self._parameter_layers = self.parameter_layers()
        layers, count = self._parameter_layers
        return layers.get(name, count - 1), count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: The feature map of each stage in ``out_indices``, shape
            (N, C_i, H / stride_i, W / stride_i), rounded up.
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
        """Run the stage at ``index``, counted from 0, and return its output and the recurrent state.

        The state is None before the first stage.
        """
        return getattr(self, f'layer{index + 1}')(x), state

    def _finish_outputs(self, outputs: list[Tensor], state: Any) -> list[Tensor]:
        """Apply the layers after the last stage, such as a final norm."""
        return outputs

    def _frozen_modules(self) -> Iterable[nn.Module]:
        for stage in range(min(self.frozen_stages, self.num_stages) + 1):
            yield from self.stage_modules(stage)

    def _freeze(self) -> None:
        """Freeze the parameters of frozen stages."""
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set training or evaluation mode.

        Frozen stages stay in evaluation mode, and so do batch norms with ``norm_eval`` and models in their
        inference form.
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
        """Run the initialisers, except on a model in its inference form."""
        if not self.deployed:
            super().init_weights()

    def __repr__(self) -> str:
        # MMEngine would append init_cfg to every submodule
        return nn.Module.__repr__(self)
