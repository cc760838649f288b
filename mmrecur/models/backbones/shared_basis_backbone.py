"""Base class of the backbones whose blocks share filter bases."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from mmrecur.checks import check_choice
from mmrecur.models.backbones.base import Backbone
from mmrecur.models.layers.filter_basis import (
    INFERENCE_FORMS,
    BasisStage,
    FactorizedConv2d,
    group_by_filter_size,
)
from mmrecur.models.losses import AuxiliaryObjective, BasisGroup

#: Config of the paper's auxiliary loss.
ORTHOGONALITY: Mapping = MappingProxyType(dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0))


class SharedBasisBackbone(AuxiliaryObjective, Backbone):
    """Base class of the backbones whose blocks share filter bases.

    A subclass builds its stages, lists their names in ``stages``, and calls :meth:`_finish`.

    Args:
        num_stages (int): Number of stages after the stem.
        loss_ortho (Mapping, optional): Auxiliary loss that keeps the bases orthonormal, computed from a list
            of :class:`BasisGroup`. It needs :class:`AuxiliaryLossHook`. None disables it. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        **kwargs: See :class:`Backbone`.
    """

    loss_name = 'loss_ortho'
    loss_purpose = 'the orthogonality of its filter bases'

    stages: list[str]

    def __init__(self, num_stages: int, loss_ortho: Mapping | None = ORTHOGONALITY, **kwargs: object) -> None:
        super().__init__(num_stages, **kwargs)
        self._build_objective(loss_ortho, ORTHOGONALITY)
        self._form = 'auto'

    def _finish(self) -> None:
        """Freeze stages, and drop the loss if no basis can be trained."""
        self._freeze()
        self._finish_objective(is_active=self._has_trainable_basis())

    def _has_trainable_basis(self) -> bool:
        return any(p.requires_grad for stage in self.shared_stages() for p in stage.basis.parameters())

    def shared_stages(self) -> list[BasisStage]:
        """Return the stages that own bases."""
        stages = [getattr(self, name) for name in self.stages]
        return [stage for stage in stages if isinstance(stage, BasisStage) and stage.basis is not None]

    def basis_groups(self) -> list[BasisGroup]:
        """Return the filters that should be orthonormal to each other.

        Returns:
            list[BasisGroup]: One group for each stage and filter size. The matrices are views of the weights.
        """
        groups = []
        # search the whole backbone: a stage may read the basis of another
        convs = [m for m in self.modules() if isinstance(m, FactorizedConv2d)]
        for stage in self.shared_stages():
            for bases in group_by_filter_size(stage.basis.values()):
                readers = [conv for conv in convs if conv.basis in bases]
                unique = [conv.unique.matrix for conv in readers if conv.unique is not None]
                groups.append(BasisGroup([basis.matrix for basis in bases], unique))
        return groups

    def objective_input(self) -> list[BasisGroup]:
        """Return :meth:`basis_groups`, or an empty list if all bases have been frozen since construction."""
        return self.basis_groups() if self._has_trainable_basis() else []

    def switch_to_deploy(self, memory_format: torch.memory_format | None = None, form: str = 'auto') -> None:
        """Rewrite the model in place into its inference form.

        Args:
            memory_format (torch.memory_format, optional): See :meth:`Deployable.switch_to_deploy`.
            form (str): Inference form of factorised convolutions, ``'dense'``, ``'factorized'`` or
                ``'auto'``, see :meth:`FactorizedConv2d.materialise`. Defaults to 'auto'.

        Raises:
            ValueError: If ``form`` is unknown.
        """
        check_choice('form', form, INFERENCE_FORMS)
        self._form = form
        super().switch_to_deploy(memory_format)

    def _switch_to_deploy(self) -> None:
        self._fuse_outside_stages()
        for name in self.stages:
            stage = getattr(self, name)
            if isinstance(stage, BasisStage):
                stage.switch_to_deploy(self._form)
        for stage in self.shared_stages():
            stage.basis = None
        self._drop_objective()

    def _fuse_outside_stages(self) -> None:
        """Fuse the norms of the stem and of other modules outside the stages."""
        raise NotImplementedError
