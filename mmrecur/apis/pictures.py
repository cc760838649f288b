"""Draw the predictions of a detector next to the ground truth."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmrecur.analysis.complexity import is_detector
from mmrecur.models.layers.common.modes import evaluation_mode

#: Images whose shorter side is below this number of pixels are enlarged by an integer factor.
MIN_SIDE = 320


def _enlarged(image: np.ndarray, sample: Any, factor: int) -> tuple[np.ndarray, Any]:
    """Enlarge an image together with its boxes and masks."""
    sample = sample.cpu().clone()
    height, width = image.shape[:2]
    image = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST)
    for name in ('gt_instances', 'pred_instances'):
        instances = getattr(sample, name, None)
        if instances is None:
            continue
        if 'bboxes' in instances:
            boxes = instances.bboxes
            instances.bboxes = getattr(boxes, 'tensor', boxes) * factor
        if 'masks' in instances:
            masks = instances.masks
            masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks
            masks = torch.as_tensor(masks)
            masks = masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            instances.masks = masks.bool()
    return image, sample


def draw_predictions(
    runner: Runner, directory: str | Path, number: int = 8, score_threshold: float = 0.3
) -> list[Path]:
    """Draw a detector's predictions on the first validation images.

    Each picture shows the predictions on the right and, if the validation pipeline loads it, the ground
    truth on the left. Small images are enlarged.

    Args:
        runner (Runner): A runner of mmdet, after training. Only the main process draws.
        directory (str or Path): Folder for the pictures, ``NAME_OF_IMAGE.png``.
        number (int): Maximum number of images. Defaults to 8.
        score_threshold (float): Minimum score of the boxes drawn. Defaults to 0.3.

    Returns:
        list[Path]: The written pictures. Empty if the model is not a detector or has no validation data.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not is_main_process() or runner.val_loop is None or not is_detector(model):
        return []
    from mmdet.visualization import DetLocalVisualizer

    loader = runner.val_loop.dataloader
    visualizer = DetLocalVisualizer(name='predictions')
    visualizer.dataset_meta = getattr(loader.dataset, 'metainfo', {})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with evaluation_mode(model):
        for batch in loader:
            with torch.no_grad():
                samples = model.val_step(batch)
            for sample in samples:
                written.append(_draw(visualizer, sample, directory, len(written), score_threshold))
                if len(written) >= number:
                    return written
    return written


def _draw(visualizer: Any, sample: Any, directory: Path, index: int, threshold: float) -> Path:
    image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
    factor = max(1, -(-MIN_SIDE // min(image.shape[:2])))
    image, sample = _enlarged(image, sample, factor)
    path = directory / f'{Path(sample.img_path).stem}.png'
    # the visualizer warns that a box which ends at the border is out of bounds
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*out of bounds')
        visualizer.add_datasample(
            path.stem,
            image,
            data_sample=sample,
            draw_gt='gt_instances' in sample and len(sample.gt_instances) > 0,
            pred_score_thr=threshold,
            out_file=str(path),
            step=index,
        )
    return path
