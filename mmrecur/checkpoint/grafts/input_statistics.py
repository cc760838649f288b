"""Means and covariances of the inputs of convolutions on a batch of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: A batch of images, shape (N, C, H, W), or several batches of different sizes.
Images = Union[Tensor, Sequence[Tensor]]  # noqa: UP007
#: Share of the mean variance that is added to each entry's own. It settles directions in which no image
#: varies: there a fit in this metric is the one without images.
RIDGE = 1e-6
#: Largest number of pixels of a chunk of images.
CHUNK_PIXELS = 2**19
#: Number of positions read from all maps of a convolution whose filters have at most WIDE entries. With more
#: entries it falls in inverse proportion, so that the work grows with the number of entries only.
POSITIONS = 32000
WIDE = 1152


@dataclass
class InputStatistics:
    """Statistics of the input that a convolution's filters see, in double precision.

    A filter reads a patch of K = C / groups * k * k entries. Sums count each position equally.

    Attributes:
        count (int): Number of positions.
        mean (Tensor): Mean patch, shape (groups, K).
        second_moment (Tensor): Mean of the outer products of the patches, shape (groups, K, K).
    """

    count: int
    mean: Tensor
    second_moment: Tensor

    @property
    def covariance(self) -> Tensor:
        """Tensor: Covariance of the patches, shape (groups, K, K)."""
        return self.second_moment - self.mean.unsqueeze(2) * self.mean.unsqueeze(1)

    def metric(self, centred: bool) -> Tensor:
        """Return the matrix M with which ``w M w^T`` is the mean squared output of a filter w.

        Args:
            centred (bool): Leave out the mean of the outputs, which a norm behind the convolution removes.

        Returns:
            Tensor: Symmetric positive definite matrices, shape (groups, K, K).
        """
        matrix = self.covariance if centred else self.second_moment
        ridge = RIDGE * self.second_moment.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        return matrix + torch.diag_embed(ridge[:, None].expand_as(self.mean))


def check_images(images: Images, channels: int) -> list[Tensor]:
    """Return batches of images as a list.

    Args:
        images (Tensor or Sequence[Tensor]): A batch of shape (N, C, H, W), or several of different sizes.
        channels (int): The number of channels C.

    Raises:
        TypeError: If they are not tensors of floating-point numbers.
        ValueError: If a batch is empty, has another shape or contains a value that is not finite.
    """
    batches = [images] if isinstance(images, Tensor) else images
    allowed = f'allowed: normalised images of shape (N, {channels}, H, W), or a list of such batches'
    if not isinstance(batches, Sequence) or isinstance(batches, str) or not batches:
        raise TypeError(f'images={images!r}, {allowed}')
    for batch in batches:
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            kind = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise TypeError(f'images of type {kind}, {allowed} of floating-point numbers')
        if batch.dim() != 4 or batch.size(1) != channels or not batch.numel():
            raise ValueError(f'images of shape {tuple(batch.shape)}, {allowed}')
        if not batch.isfinite().all():
            raise ValueError(
                'images contain a value that is infinite or not a number, allowed: finite values'
            )
    return list(batches)


def chunks(images: Sequence[Tensor], like: Tensor) -> Iterator[Tensor]:
    """Yield the images in chunks that fit in memory, with the dtype and on the device of ``like``."""
    for batch in images:
        for chunk in batch.split(max(1, CHUNK_PIXELS // (batch.size(2) * batch.size(3)))):
            yield chunk.to(like)


class _AllRead(Exception):
    """Ends a forward pass once all inputs have been read."""


@torch.no_grad()
def input_statistics(
    network: nn.Module, convs: Mapping[str, nn.Conv2d], images: Sequence[Tensor]
) -> dict[str, InputStatistics]:
    """Compute the statistics of the inputs of some convolutions of a network.

    Images pass through the network in chunks, up to the last of the convolutions. Large maps are read on a
    regular grid of positions.

    Args:
        network (nn.Module): The network in evaluation mode.
        convs (Mapping[str, nn.Conv2d]): Convolutions that each run once per pass, by name.
        images (Sequence[Tensor]): Batches of shape (N, C, H, W).

    Returns:
        dict[str, InputStatistics]: Statistics by the name of the convolution.
    """
    count = sum(1 for _ in chunks(images, next(network.parameters())))
    sums = {name: _Sums(_positions(conv) // count) for name, conv in convs.items()}
    waiting: set[str] = set()

    def read(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        sums[name].add(conv, x)
        waiting.discard(name)
        if not waiting:
            raise _AllRead

    handles = [
        conv.register_forward_pre_hook(lambda conv, args, name=name: read(name, conv, args[0]))
        for name, conv in convs.items()
    ]
    try:
        for chunk in chunks(images, next(network.parameters())):
            waiting.update(convs)
            _run(network, chunk)
    finally:
        for handle in handles:
            handle.remove()
    return {name: own.statistics() for name, own in sums.items()}


def _run(network: nn.Module, chunk: Tensor) -> None:
    try:
        network(chunk)
    except _AllRead:
        return


def _positions(conv: nn.Conv2d) -> int:
    entries = conv.weight[0].numel()
    return max(2 * entries, round(POSITIONS * min(1, WIDE / entries)))


class _Sums:
    """Sums over positions of one convolution's input; each position read stands for ``step ** 2``."""

    def __init__(self, chunk_positions: int) -> None:
        self.chunk_positions = max(1, chunk_positions)
        self.count, self.first, self.second = 0, 0, 0

    def add(self, conv: nn.Conv2d, x: Tensor) -> None:
        columns, weight = unfold(conv, x, self.chunk_positions)
        self.count += weight * columns.size(2)
        self.first = self.first + weight * columns.sum(2)
        self.second = self.second + weight * (columns @ columns.transpose(1, 2))

    def statistics(self) -> InputStatistics:
        return InputStatistics(self.count, self.first / self.count, self.second / self.count)


def unfold(conv: nn.Conv2d, x: Tensor, most: int) -> tuple[Tensor, int]:
    """Read the patches that a convolution's filters see on a regular grid.

    Args:
        conv (nn.Conv2d): The convolution.
        x (Tensor): Its input, shape (N, C, H, W).
        most (int): Largest number of patches, about.

    Returns:
        tuple[Tensor, int]: Patches in double precision, shape (groups, K, positions), and the number of
        positions that each of them stands for.
    """
    outputs = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride)
    ]
    positions = len(x) * math.prod(outputs)
    step = max(1, min(math.ceil(math.sqrt(positions / most)), *outputs))
    (top, left), strides = ((step // 2 * s for s in conv.stride), [step * s for s in conv.stride])
    padded = F.pad(x, (conv.padding[1],) * 2 + (conv.padding[0],) * 2)[..., top:, left:]
    columns = F.unfold(padded, conv.kernel_size, conv.dilation, 0, strides).double()
    n, entries, read = columns.shape
    grouped = columns.view(n, conv.groups, entries // conv.groups, read).permute(1, 2, 0, 3)
    return grouped.reshape(conv.groups, entries // conv.groups, n * read), step * step
