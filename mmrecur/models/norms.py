"""Re-estimation of the running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrecur.models.deployable import Deployable
from mmrecur.models.layers.common.modes import evaluation_mode
from mmrecur.models.layers.loop.block import LoopBlock


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of a model that have running statistics, by name."""
    return {
        name: norm
        for name, norm in model.named_modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.running_mean is not None
    }


@torch.no_grad()
def reestimate_norms(
    model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], names: Collection[str] | None = None
) -> int:
    """Replace the running statistics of batch norms by the exact statistics of the given images.

    After a swap of the backbone, and after an average of several weights, the running statistics belong to
    maps that the model no longer computes. This function runs backbone and neck once on every batch. As in
    training, each norm normalises with the statistics of the batch, and all norms are measured in the same
    pass. All other layers are in evaluation mode: dropout does nothing, gates decide as they do in
    evaluation, and a norm in a loop counts the samples that run the iteration.

    The new statistics are the mean and the unbiased variance of all values that a norm has received in all
    batches, on all processes, if ``torch.distributed`` is initialised. They are not an average of batch
    variances. They are accumulated in double precision, outside autocast. If a norm receives a single value
    for each channel, as after global pooling of one image, it normalises with its present statistics, and
    the value is counted. A norm that no sample reaches keeps its statistics; this includes the norms of
    heads. A ``SyncBatchNorm`` normalises with the batch of its own process.

    Nothing but the statistics changes, and nothing at all if an error is raised.

    Args:
        model (nn.Module): A model with ``extract_feat``, a model with a ``backbone`` and perhaps a ``neck``,
            or any other module, which is run as a whole.
        batches (Iterable): Preprocessed images: a tensor of shape (N, C, H, W) for each batch, or a sequence
            of such tensors of different sizes, which are run one after another. They are moved to the device
            and dtype of the model.
        names (Collection[str], optional): Names of the norms to re-estimate; the other ones stay in
            evaluation mode. Defaults to None, all of them.

    Returns:
        int: Number of re-estimated norms.

    Raises:
        TypeError: If a batch is neither a tensor nor a sequence of tensors.
        ValueError: If the model has no batch norms or is in its inference form, if there are no images, or
            if a norm receives values that are not finite.

    Example:
        >>> import torch
        >>> from mmrecur.apis import reestimate_norms
        >>> from mmrecur.models.backbones import ResNetShared
        >>> reestimate_norms(ResNetShared(20, base_channels=8), [torch.rand(8, 3, 32, 32)])
        31
    """
    if any(isinstance(module, Deployable) and module.deployed for module in model.modules()):
        raise ValueError(
            f'model of type {type(model).__name__} is in its inference form, whose norms are fused; allowed: '
            'a model in its training form'
        )
    measured = {n: _Measurement(m) for n, m in batch_norms(model).items() if names is None or n in names}
    if not measured:
        chosen = '' if names is None else f' among names={sorted(names)}'
        raise ValueError(
            f'model of type {type(model).__name__} has no batch norms with running statistics{chosen}, '
            'allowed: a model with some'
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    num_images = 0
    with _measuring(model, list(measured.values())):
        for images in _tensors(batches):
            images = images if parameter is None else images.to(parameter)
            with torch.autocast(images.device.type, enabled=False):
                run_backbone_and_neck(model, images)
            num_images += len(images)
    return _apply(measured, num_images)


def run_backbone_and_neck(model: nn.Module, images: Tensor) -> Any:
    """Return the features of images: the neck's outputs, or the backbone's if there is no neck.

    Args:
        model (nn.Module): See :func:`reestimate_norms`.
        images (Tensor): Shape (N, C, H, W).

    Returns:
        Any: Whatever the last of these modules returns.
    """
    if hasattr(model, 'extract_feat'):
        return model.extract_feat(images)
    if not hasattr(model, 'backbone'):
        return model(images)
    maps = model.backbone(images)
    neck = getattr(model, 'neck', None)
    return maps if neck is None else neck(maps)


class _Measurement:
    """Statistics of all values that a batch norm receives.

    Attributes:
        count (int): Number of values of each channel.
        mean (Tensor): Their mean in double precision, shape (C,).
        deviations (Tensor): Sum of their squared deviations from the mean, shape (C,).
    """

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.count = 0
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.deviations = torch.zeros_like(self.mean)

    def normalise(self, x: Tensor) -> Tensor:
        """Run the norm with the statistics of its input, which are recorded. Replaces its ``forward``."""
        values = x if x.dtype == torch.float64 else x.float()
        norm, count = self.norm, x.numel() // x.size(1)
        weight, bias = (None if p is None else p.to(values) for p in (norm.weight, norm.bias))
        if count > 1:
            mean, var = values.new_zeros(x.size(1)), values.new_ones(x.size(1))
            # with momentum 1 the function writes the statistics of the batch into the two tensors
            output = F.batch_norm(values, mean, var, weight, bias, training=True, momentum=1, eps=norm.eps)
            self._add(count, mean.double(), var.double() * (count - 1))
        else:
            mean, var = norm.running_mean.to(values), norm.running_var.to(values)
            output = F.batch_norm(values, mean, var, weight, bias, eps=norm.eps)
            if count == 1:
                self._add(1, values.double().flatten(), torch.zeros_like(self.mean))
        return output.to(x.dtype)

    def _add(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        total, delta = self.count + count, mean - self.mean
        self.mean += delta * (count / total)
        self.deviations += deviations + delta.square() * (self.count * count / total)
        self.count = total


@contextmanager
def _measuring(model: nn.Module, measurements: list[_Measurement]) -> Iterator[None]:
    """Let norms record what they receive, with all other layers in evaluation mode."""
    norms = [measurement.norm for measurement in measurements]
    forwards = [vars(norm).get('forward') for norm in norms]
    # the form that selects runs samples through the norms that have already left the loop
    selecting = [part for part in model.modules() if isinstance(part, LoopBlock) and not part.skip]
    with evaluation_mode(model):
        try:
            for measurement in measurements:
                measurement.norm.training = True  # or MMCV's layers may bypass the norm
                measurement.norm.forward = measurement.normalise
            for loop in selecting:
                loop.skip = True
            yield
        finally:
            for norm, forward in zip(norms, forwards):
                vars(norm).pop('forward', None)
                if forward is not None:
                    norm.forward = forward
            for loop in selecting:
                loop.skip = False


def _tensors(batches: Iterable[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    for batch in batches:
        items = [batch] if isinstance(batch, Tensor) else batch
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, Tensor) for item in items):
            raise TypeError(
                f'batches yields a {type(batch).__name__}, allowed: a tensor of shape (N, C, H, W), or a '
                'sequence of such tensors'
            )
        yield from items


def _apply(measured: dict[str, _Measurement], num_images: int) -> int:
    """Write the statistics of all processes into the norms that have received values; return how many."""
    every = list(measured.values())
    sums = [torch.cat([m.mean.new_tensor([m.count]), m.count * m.mean]) for m in every]
    counts = _sum_over_processes([every[0].mean.new_tensor([num_images]), *sums])
    if counts[0].item() == 0:
        raise ValueError('batches has no images, allowed: at least one')
    totals = [total[0] for total in counts[1:]]
    means = [total[1:] / total[0].clamp(min=1) for total in counts[1:]]
    around = [m.deviations + m.count * (m.mean - mean).square() for m, mean in zip(every, means)]
    variances = [d / (n - 1).clamp(min=1) for d, n in zip(_sum_over_processes(around), totals)]
    for name, mean, var in zip(measured, means, variances):
        if not torch.isfinite(torch.stack([mean, var])).all():
            raise ValueError(f'norm {name!r} receives values that are not finite; nothing was changed')
    reached = 0
    for measurement, total, mean, var in zip(every, totals, means, variances):
        if total > 1:
            measurement.norm.running_mean.copy_(mean)
            measurement.norm.running_var.copy_(var)
            reached += 1
    return reached


def _sum_over_processes(parts: list[Tensor]) -> list[Tensor]:
    """Return the sums of tensors over all processes, with one reduction."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return parts
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    return list(flat.split([part.numel() for part in parts]))
