"""Plain convolutions that are to share filters, with the statistics of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.align import following_norm
from mmrecur.checkpoint.grafts.data_fit import fit_whole, relative_error
from mmrecur.checkpoint.grafts.graft import GraftTransfer
from mmrecur.checkpoint.grafts.input_statistics import InputStatistics, input_statistics
from mmrecur.models.layers.common.fuse import is_fusible

#: Explanation for the report.
FITTED = 'fitted to the images'


@dataclass
class SharedLayer:
    """A plain convolution that is to share filters with others.

    Attributes:
        key (str): Source key of its weight.
        weight (Tensor): Filters in double precision, shape (groups, filters per group, K).
        statistics (InputStatistics): Statistics of its input.
        norm (nn.Module, optional): The batch norm behind it, which removes mean and scale; None if there is
            none or the layers share it.
    """

    key: str
    weight: Tensor
    statistics: InputStatistics
    norm: nn.Module | None

    def __post_init__(self) -> None:
        self.metric = self.statistics.metric(centred=self.norm is not None)

    @property
    def deviation(self) -> Tensor:
        """Tensor: What the norm divides each output channel by, or ones; shape (groups, filters, 1)."""
        if self.norm is None:
            return torch.ones_like(self.weight[..., :1])
        return (self.norm.running_var.double() + self.norm.eps).sqrt().view_as(self.weight[..., :1])

    def error(self, fit: Tensor) -> float:
        """Return ``||y - y'|| / ||y||`` of the outputs with other filters, each divided by its deviation."""
        return relative_error(self.weight / self.deviation, fit / self.deviation, self.metric)

    def norm_values(self, fit: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the norm with which other filters keep mean and deviation of each channel.

        The running statistics become those of the new filters' outputs. Weight and bias make up for the
        difference between the plain norm's running statistics and those of its input on the images. Hence
        evaluation and training agree on the images, and filters equal to the plain ones, up to a factor,
        keep the function.

        Args:
            fit (Tensor): The new filters, in the shape of ``weight``.

        Returns:
            dict[str, Tensor]: Tensors by leaf name.
        """
        (mean, variance), (old_mean, old_variance) = map(self._moments, (fit, self.weight))
        norm, divisor = self.norm, self.deviation.flatten()
        gain, shift = (1.0, 0.0) if norm.weight is None else (norm.weight.double(), norm.bias.double())
        ratio = (old_variance / variance.clamp(min=1e-30)).sqrt()
        return dict(
            running_mean=mean,
            running_var=variance,
            weight=gain * ratio * (variance + norm.eps).sqrt() / divisor,
            bias=shift + gain * (old_mean - norm.running_mean.double()) / divisor,
        )

    def _moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mean = weight @ self.statistics.mean.unsqueeze(2)
        variance = ((weight @ self.statistics.covariance) * weight).sum(2)
        return mean.flatten(), variance.flatten().clamp(min=0)


def shared_layers(
    transfer: GraftTransfer, network: nn.Module, places: Sequence[str], own_norms: bool = True
) -> dict[str, SharedLayer]:
    """Run the images through the plain network and describe some of its convolutions.

    Args:
        transfer (GraftTransfer): The graft, with images.
        network (nn.Module): See :func:`plain_network`.
        places (Sequence[str]): Names of the convolutions.
        own_norms (bool): Whether each layer keeps a norm of its own. Defaults to True.

    Returns:
        dict[str, SharedLayer]: Layers by name.
    """
    convs = {place: network.get_submodule(place) for place in places}
    statistics = input_statistics(network, convs, transfer.images or [])
    layers = {}
    for place, conv in convs.items():
        name = norm_behind(network, place) if own_norms else None
        norm = network.get_submodule(name) if name else None
        entries = statistics[place].mean.size(1)
        layers[place] = SharedLayer(
            transfer.plain[f'{place}.weight'],
            conv.weight.detach().double().view(conv.groups, -1, entries),
            statistics[place],
            norm if norm is not None and is_fusible(norm) else None,
        )
    return layers


def norm_behind(network: nn.Module, place: str) -> str | None:
    """Return the name of the norm behind a convolution of a block; None if there is none."""
    block, conv = place.rsplit('.', 1)
    norm = following_norm(network.get_submodule(block), conv)
    return f'{block}.{norm}' if norm else None


def normalised(layers: Sequence[SharedLayer]) -> tuple[list[Tensor], Tensor]:
    """Scale the filters of layers of one shape so that they are comparable.

    Where a norm follows, it sets the scale of its layer, so only the filters' directions have to agree.

    Args:
        layers (Sequence[SharedLayer]): The layers.

    Returns:
        tuple[list[Tensor], Tensor]: The filters of each layer, in front of a norm for outputs of the common
        deviation; and the common deviation of each channel, shape (groups, filters, 1).
    """
    deviations = [layer.deviation for layer in layers if layer.norm is not None]
    if not deviations:
        return [layer.weight for layer in layers], torch.ones_like(layers[0].weight[..., :1])
    common = torch.stack([deviation.log() for deviation in deviations]).mean(0).exp()
    factors = [1.0 if layer.norm is None else common / layer.deviation for layer in layers]
    return [factor * layer.weight for factor, layer in zip(factors, layers)], common


def fit_as_a_whole(layers: Sequence[SharedLayer]) -> tuple[Tensor, list[float]]:
    """Fit the filters that several convolutions share as a whole.

    Args:
        layers (Sequence[SharedLayer]): The convolutions.

    Returns:
        tuple[Tensor, list[float]]: The shared filters, shape (groups, filters, K), and the relative error of
        each layer's outputs.
    """
    scaled, common = normalised(layers)
    fit = fit_whole(scaled, [layer.metric for layer in layers])
    return fit, [layer.error(fit * layer.deviation / common) for layer in layers]


def set_norm(
    transfer: GraftTransfer, target: str, source: str, values: dict[str, Tensor], keys: Sequence[str]
) -> None:
    """Fill a norm with fitted tensors.

    Args:
        transfer (GraftTransfer): The graft to fill.
        target (str): Name of the norm in the backbone.
        source (str): Name of the norm in the plain network; empty if there is none.
        values (dict[str, Tensor]): Tensors by leaf name.
        keys (Sequence[str]): Source keys of the weights that they depend on.
    """
    for leaf, value in values.items():
        key = f'{transfer.prefix}{target}.{leaf}'
        if key in transfer.target:
            own = transfer.plain.get(f'{source}.{leaf}')
            sources = [*([] if own is None else [own]), *keys]
            transfer.transform(key, sources, value.to(transfer.target[key]), FITTED)
