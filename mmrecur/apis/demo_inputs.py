"""Make up batches to try a training step of a model without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmrecur.analysis.complexity import is_detector


def noise_images(batch_size: int, channels: int, shape: tuple[int, int]) -> list[Tensor]:
    """Return images of random pixels, which are the same in each call.

    Args:
        batch_size (int): Number of images.
        channels (int): Channels of each image.
        shape (tuple[int, int]): Height and width.

    Returns:
        list[Tensor]: Images of type uint8, shape (channels, height, width).
    """
    rng = np.random.RandomState(0)
    pictures = rng.randint(0, 255, (batch_size, channels, *shape), dtype=np.uint8)
    return list(torch.from_numpy(pictures))


def _boxes(height: int, width: int) -> Tensor:
    """Return two boxes (x1, y1, x2, y2): a tall one on the left and a wide one on the right."""
    parts = torch.tensor([[0.05, 0.1, 0.45, 0.8], [0.55, 0.15, 0.95, 0.5]])
    return (parts * torch.tensor([width, height, width, height])).round()


def detection_sample(image: Tensor, index: int, labels: tuple[int, int], stuff: int) -> Any:
    """Return all kinds of annotations for an image with two objects.

    Args:
        image (Tensor): The image, shape (C, H, W).
        index (int): Index of the image.
        labels (tuple[int, int]): Classes of the objects.
        stuff (int): Class of the background in the semantic map.

    Returns:
        DetDataSample: Boxes, labels, masks, a semantic map and proposals.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = image.shape[-2:]
    boxes = _boxes(height, width)
    masks = np.zeros((2, height, width), np.uint8)
    semantic = torch.full((1, height, width), stuff, dtype=torch.uint8)
    for mask, label, (x1, y1, x2, y2) in zip(masks, labels, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
        semantic[0, y1:y2, x1:x2] = label
    size = (height, width)
    meta = dict(
        img_id=index, img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
        scale_factor=(1.0, 1.0), flip=False, border=(0, height, 0, width),
    )  # fmt: skip
    instances = InstanceData(
        bboxes=boxes, labels=torch.tensor(labels), masks=BitmapMasks(masks, height, width)
    )
    sample = DetDataSample(metainfo=meta, gt_instances=instances)
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long))
    sample.gt_sem_seg = PixelData(sem_seg=semantic)
    sample.proposals = InstanceData(bboxes=boxes + 2, scores=torch.tensor([0.9, 0.8]))
    return sample


def demo_inputs(
    model: nn.Module, shape: tuple[int, int] = (128, 128), batch_size: int = 2, channels: int = 3
) -> dict[str, Any] | None:
    """Return a batch to train a model on, in the form that a data loader returns.

    Args:
        model (nn.Module): A detector, instance segmenter or panoptic segmenter of mmdet, or a classifier of
            mmpretrain.
        shape (tuple[int, int]): Height and width of the images. Defaults to (128, 128).
        batch_size (int): Number of images. Defaults to 2.
        channels (int): Channels of the images. Defaults to 3.

    Returns:
        dict, optional: ``inputs`` and ``data_samples`` for the model's data preprocessor. None if the model
        has another task.
    """
    images = noise_images(batch_size, channels, shape)
    classes = _num_classes(model)
    if is_detector(model):
        last = max(0, min(4, classes - 1))
        # in panoptic heads, the first class after those of objects is a stuff class
        samples = [detection_sample(image, i, (0, last), min(classes, 254)) for i, image in enumerate(images)]
        if _reads_tensor_masks(model):
            for sample in samples:
                sample.gt_instances.masks = sample.gt_instances.masks.to_tensor(torch.bool, 'cpu')
        if getattr(model, 'with_rpn', True) is not False:
            for sample in samples:
                del sample.proposals
        return dict(inputs=images, data_samples=samples)
    if _is_classifier(model):
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(index % max(classes, 1)) for index in range(batch_size)]
        return dict(inputs=torch.stack(images), data_samples=samples)
    return None


def _reads_tensor_masks(model: nn.Module) -> bool:
    """Return whether a model needs masks as tensors, as the assigner of RTMDet does."""
    from mmdet.models.dense_heads import RTMDetHead, RTMDetInsHead

    head = getattr(model, 'bbox_head', None)
    return isinstance(head, RTMDetHead) and not isinstance(head, RTMDetInsHead)


def _num_classes(model: nn.Module) -> int:
    """Return the smallest number of classes in any module of the model."""
    names = ('num_things_classes', 'num_classes')
    found = (getattr(module, name, None) for module in model.modules() for name in names)
    return min((value for value in found if isinstance(value, int) and value > 0), default=1)


def _is_classifier(model: nn.Module) -> bool:
    """Return whether a model is an image classifier of mmpretrain with one label for each image."""
    try:
        from mmpretrain.models import ImageClassifier
        from mmpretrain.models.heads import MultiLabelClsHead, MultiTaskHead
    except ImportError:
        return False
    head = getattr(model, 'head', None)
    return isinstance(model, ImageClassifier) and not isinstance(head, (MultiLabelClsHead, MultiTaskHead))
