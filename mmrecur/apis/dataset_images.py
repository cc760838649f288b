"""Load the images of a config's data set."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from mmrecur.apis.runner import stack_batches
from mmrecur.apis.specs import registry_scope
from mmrecur.errors import ToolError


def build_test_loader(
    cfg: Config,
    num_images: int | None = None,
    batch_size: int | None = None,
    training: bool = False,
    spread: bool = False,
) -> tuple[DataLoader, Any]:
    """Build a loader of a config's test images, in the order of the data set.

    Args:
        cfg (Config): The config.
        num_images (int, optional): Maximum number of images. Defaults to None, all images.
        batch_size (int, optional): Number of images in a batch. Defaults to None, the config's batch size.
        training (bool): Load the training images through the test pipeline. Defaults to False.
        spread (bool): Load evenly spaced images instead of the first ones, so that a data set sorted by
            class is covered. Defaults to False.

    Returns:
        tuple[DataLoader, Dataset]: The loader, and the whole data set, which has ``get_data_info(index)``.

    Raises:
        ToolError: If the config has no test (or training) data, or if the data set does not hold images.
    """
    if cfg.get('test_dataloader') is None:
        raise ToolError(f'config {cfg.filename!r} has no test_dataloader: it describes no test')
    cfg = copy.deepcopy(cfg)
    stack_batches(cfg)
    loader = cfg.test_dataloader.to_dict()
    if training:
        if cfg.get('train_dataloader') is None:
            raise ToolError(f'config {cfg.filename!r} has no train_dataloader: it describes no training')
        pipeline = loader['dataset'].get('pipeline')
        loader['dataset'] = dict(cfg.train_dataloader.dataset.to_dict(), pipeline=pipeline)
    with registry_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(loader['dataset'])
        if not hasattr(dataset, 'get_data_info'):
            kind = 'training' if training else 'test'
            raise ToolError(f'the {kind} data set is a {type(dataset).__name__}, allowed: one of images')
        count = min(len(dataset), num_images or len(dataset))
        reach = len(dataset) if spread else count
        chosen = Subset(dataset, [i * reach // count for i in range(count)])
        loader.update(dataset=chosen, sampler=dict(type='DefaultSampler', shuffle=False))
        if batch_size is not None:
            loader['batch_size'] = batch_size
        loader.pop('batch_sampler', None)
        return Runner.build_dataloader(loader), dataset
