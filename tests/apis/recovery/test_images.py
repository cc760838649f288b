"""Unlabelled images for a recovery: where they are found, how they are read, their order."""

from __future__ import annotations

import json
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image
from torch import Tensor, nn

from mmrecur.apis.recovery.images import RecoveryImages
from mmrecur.apis.runner import load_config
from mmrecur.datasets import ShapesConfig, write_split
from mmrecur.errors import ToolError
from tests.helpers.global_state import unchanged

COCO_MINI = Path(os.environ.get('MMRECUR_DATA', 'unset')) / 'coco_mini'
LABELS = dict(type='LoadAnnotations', with_bbox=True)


def with_preprocessor(preprocessor: nn.Module) -> nn.Module:
    """Return a model of which only the data preprocessor matters."""
    model = nn.Module()
    model.data_preprocessor = preprocessor
    return model


DETECTOR = with_preprocessor(
    DetDataPreprocessor(mean=[10.0, 20, 30], std=[2.0, 2, 2], bgr_to_rgb=True, pad_size_divisor=32)
)


def detection_config(root: Path | str = '', **train: Any) -> Config:
    """Return a config of shapes, whose test pipeline loads annotations."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        LABELS,
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
    ]
    data = dict(type='CocoDataset', data_root=str(root), data_prefix=dict(img='train/'))
    data |= dict(ann_file='annotations/instances_train.json', pipeline=pipeline)
    training = train or data | dict(pipeline=[*pipeline[:1], LABELS, dict(type='RandomFlip', prob=1.0)])
    return Config(
        dict(
            default_scope='mmdet',
            train_dataloader=dict(dataset=training),
            test_dataloader=dict(dataset=dict(data, test_mode=True)),
        )
    )


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 12 training images of 32 x 48 pixels."""
    root = tmp_path_factory.mktemp('shapes')
    write_split(root, ShapesConfig(num_train=12, num_val=1, size=(32, 48)), 'train')
    return root


def coloured(folder: Path, number: int, size: tuple[int, int] = (32, 32)) -> list[Path]:
    """Write images of a colour each, from which they can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{i:02d}.png' for i in range(number)]
    for i, path in enumerate(paths):
        assert cv2.imwrite(str(path), np.full((*size, 3), 10 * i, np.uint8))
    return paths


PLAIN = Config(
    dict(
        default_scope='mmpretrain',
        test_dataloader=dict(
            dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
        ),
    )
)
CLASSIFIER = with_preprocessor(ClsDataPreprocessor(to_rgb=True))


def colours(batch: list[Tensor]) -> list[int]:
    return [int(image[0, 0, 0]) // 10 for x in batch for image in x]


# ---------------------------------------------------------------- what a batch is


def test_images_are_those_of_the_test_pipeline_and_preprocessor(shapes: Path) -> None:
    images = RecoveryImages(detection_config(shapes), shapes / 'train', DETECTOR, batch_size=12)
    ((x,),) = list(images)
    assert x.shape == (12, 3, 64, 64) and not x.requires_grad
    # read in another way: 32 x 48 becomes 43 x 64, and is padded at the bottom to a multiple of 32
    expected = []
    for path in images.names:
        image = cv2.resize(cv2.imread(path), (64, 43))[..., ::-1].transpose(2, 0, 1)
        normal = (torch.tensor(image.copy()).float() - torch.tensor([10.0, 20, 30])[:, None, None]) / 2
        expected.append(torch.nn.functional.pad(normal, (0, 0, 0, 21)))
    remaining = [i for i, image in enumerate(expected) if not any(torch.equal(image, other) for other in x)]
    assert remaining == []


def test_images_are_padded_alone_and_stacked_by_size(tmp_path: Path) -> None:
    coloured(tmp_path / 'wide', 3, (32, 64))
    coloured(tmp_path / 'tall', 2, (64, 32))
    images = RecoveryImages(detection_config(), tmp_path, DETECTOR, batch_size=5)
    (batch,) = images
    assert sorted(x.shape for x in batch) == [(2, 3, 64, 32), (3, 3, 32, 64)]


def test_other_preprocessors(tmp_path: Path) -> None:
    coloured(tmp_path, 4)
    for preprocessor in (ImgDataPreprocessor(bgr_to_rgb=True), CLASSIFIER.data_preprocessor):
        (batch,) = RecoveryImages(PLAIN, tmp_path, with_preprocessor(preprocessor), batch_size=4)
        assert [x.shape for x in batch] == [(4, 3, 32, 32)] and sorted(colours(batch)) == [0, 1, 2, 3]


def test_configs_of_the_libraries(shapes: Path) -> None:
    for name, size in {
        'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': (800, 1216),
        'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py': (800, 1216),
        'mmpretrain::resnet/resnet50_8xb32_in1k.py': (224, 224),
    }.items():
        cfg = load_config(name)
        model = CLASSIFIER if name.startswith('mmpretrain') else DETECTOR
        (x,) = next(iter(RecoveryImages(cfg, shapes / 'train', model, batch_size=1)))
        assert x.shape == (1, 3, *size)


def test_the_first_of_several_test_views_is_used(tmp_path: Path) -> None:
    coloured(tmp_path, 1)
    cfg = detection_config()
    load, resize, labels, pack = cfg.test_dataloader.dataset.pipeline
    double = dict(type='Resize', scale=(128, 128), keep_ratio=True)
    views = dict(type='TestTimeAug', transforms=[[double, resize], [labels], [pack]])
    cfg.test_dataloader.dataset.pipeline = [load, views]
    ((x,),) = RecoveryImages(cfg, tmp_path, DETECTOR, batch_size=1)
    assert x.shape == (1, 3, 128, 128)


def test_unusual_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (32, 48, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'deep.png'), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / 'grey.PNG'), pixels[..., 0])
    Image.fromarray(np.dstack([pixels[..., ::-1], pixels[..., :1]])).save(tmp_path / 'alpha.png')
    Image.fromarray(pixels).save(tmp_path / 'größe 圖.JPG')
    turned = Image.Exif()
    turned[0x0112] = 6  # shown rotated by 90 degrees
    Image.fromarray(pixels).save(tmp_path / 'turned.jpeg', exif=turned)
    (tmp_path / 'link.png').symlink_to(tmp_path / 'deep.png')
    (tmp_path / '._deep.png').write_bytes(b'resource fork')
    (tmp_path / 'loop').symlink_to(tmp_path)
    images = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=6)
    (batch,) = images
    assert sorted(x.shape for x in batch) == [(1, 3, 48, 32), (5, 3, 32, 48)]
    assert len(images.names) == 6 and images.skipped == {}


class Arrays(BaseDataset):
    """Images as RGB arrays, as the data sets of CIFAR have them."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(img=np.full((8, 8, 3), (10 * i, 0, 99), np.uint8), gt_label=i) for i in range(9)]


ARRAYS = Config(
    dict(
        default_scope='mmpretrain',
        train_dataloader=dict(dataset=dict(type=Arrays, pipeline=[])),
        test_dataloader=dict(dataset=dict(type=Arrays, pipeline=[dict(type='PackInputs')])),
    )
)


def test_arrays_and_files_in_their_place_are_rgb(tmp_path: Path) -> None:
    as_they_are = with_preprocessor(ClsDataPreprocessor())
    (batch,) = RecoveryImages(ARRAYS, 'train', as_they_are, batch_size=9)
    assert sorted(colours(batch)) == list(range(9)) and (batch[0][:, 2] == 99).all()
    cv2.imwrite(str(tmp_path / 'blue.png'), np.full((8, 8, 3), (255, 0, 0), np.uint8))
    (batch,) = RecoveryImages(ARRAYS, tmp_path, as_they_are, batch_size=1)
    assert batch[0][0, :, 0, 0].tolist() == [0, 0, 255]


# ---------------------------------------------------------------- order


def test_each_pass_has_every_image_once_in_its_own_order(tmp_path: Path) -> None:
    coloured(tmp_path, 11)
    images = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=4)
    passes = [[colours(batch) for batch in images] for _ in range(2)]
    assert len(images) == 3
    assert [[len(batch) for batch in one] for one in passes] == [[4, 4, 3]] * 2
    assert [sorted(sum(one, [])) for one in passes] == [list(range(11))] * 2
    assert passes[0] != passes[1]
    torch.manual_seed(7), np.random.seed(7)
    again = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=4)
    assert [colours(batch) for batch in islice(again.batches(), 6)] == passes[0] + passes[1]
    other = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=4, seed=1)
    assert [colours(batch) for batch in other] != passes[0]


@pytest.mark.parametrize('step', [0, 2, 3, 7])
def test_resumed_iterations_continue_with_the_same_batches(tmp_path: Path, step: int) -> None:
    coloured(tmp_path, 11)
    images = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=4)
    whole = [colours(batch) for batch in islice(images.batches(), 12)]
    assert [colours(batch) for batch in islice(images.batches(step), 12 - step)] == whole[step:]
    images.start_at(step)
    rest = [colours(batch) for _ in range(4) for batch in images]
    assert rest[: 12 - step] == whole[step:]


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    broken = coloured(tmp_path, 9)[3]
    broken.write_bytes(b'')
    options = dict(batch_size=4, min_images=2)
    alone = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, **options)
    helped = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, num_workers=2, **options)
    assert list(map(colours, helped)) == list(map(colours, alone))
    assert helped.skipped == alone.skipped and list(helped.skipped) == [str(broken)]


def test_a_choice_and_held_out_images(tmp_path: Path) -> None:
    paths = coloured(tmp_path, 20)
    images = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=4, num_images=12)
    rest, held_out = images.split(5)
    assert len(images.names) == 12 and set(images.names) <= set(map(str, paths))
    assert images.names != list(map(str, paths[:12]))
    assert len(held_out.names) == 5 and sorted(rest.names + held_out.names) == images.names
    assert images.split(5)[1].names == held_out.names
    first, second = ([colours(batch) for batch in held_out] for _ in range(2))
    assert first == second and [len(batch) for batch in first] == [3, 2]
    with pytest.raises(ToolError, match='3 images left after 9 are held out, needed: at least 4'):
        images.split(9)


def test_global_state_is_as_it_was(shapes: Path) -> None:
    cfg = detection_config(shapes)
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
    list(RecoveryImages(cfg, 'train', DETECTOR))  # imports
    with unchanged():
        images, _ = RecoveryImages(cfg, 'train', DETECTOR, batch_size=4).split(2)
        first = [batch[0] for batch in images]
    images.start_at(0)
    assert all(torch.equal(a, batch[0]) for a, batch in zip(first, images))


# ---------------------------------------------------------------- sources


def test_folders_globs_and_annotations_give_the_same_images(shapes: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(shapes)
    elsewhere = shapes / 'annotations' / 'copy_train.json'  # not in the config
    elsewhere.write_bytes((shapes / 'annotations/instances_train.json').read_bytes())
    sources = ('train/', str(shapes / 'train'), 'tr*/*.png', '**/*.png', 'train', './*', elsewhere)
    for source in (*sources, Path('annotations/instances_train.json')):
        images = RecoveryImages(detection_config(shapes), source, DETECTOR)
        assert [Path(name).name for name in images.names] == [f'{i:06d}.png' for i in range(12)], source


def test_images_of_an_annotation_file_are_where_the_config_says(tmp_path: Path, shapes: Path) -> None:
    content = json.loads((shapes / 'annotations/instances_train.json').read_text())
    for annotation in content['annotations']:
        annotation.clear()  # labels are not used
    (tmp_path / 'some.json').write_text(json.dumps(content))
    cfg = detection_config(shapes)
    with pytest.raises(ToolError, match=r"'000000.png' is in none of the folders(.|\n)*images/some"):
        RecoveryImages(cfg, tmp_path / 'some.json', DETECTOR)
    cfg.train_dataloader = dict(
        dataset=dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(
                type='CocoDataset',
                ann_file=str(tmp_path / 'some.json'),
                data_prefix=dict(img=str(shapes / 'train')),
            ),
        )
    )
    assert len(RecoveryImages(cfg, tmp_path / 'some.json', DETECTOR).names) == 12


def test_wrappers_of_training_data_are_left_out(shapes: Path) -> None:
    data = detection_config(shapes).train_dataloader.dataset.to_dict()
    data['filter_cfg'] = dict(filter_empty_gt=True, min_size=1000)  # drops every image
    concatenated = dict(type='ConcatDataset', datasets=[data, data])
    repeated = dict(type='ClassBalancedDataset', oversample_thr=0.5, dataset=concatenated)
    mixed = dict(type='MultiImageMixDataset', dataset=repeated, pipeline=[dict(type='Mosaic')])
    images = RecoveryImages(detection_config(shapes, **mixed), 'train', DETECTOR)
    assert len(images.names) == 12


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason='$MMRECUR_DATA/coco_mini is not there')
def test_photographs() -> None:
    cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    images = RecoveryImages(
        cfg, COCO_MINI / 'annotations/instances_val2017.json', DETECTOR, batch_size=3, num_images=6
    )
    assert all(Path(name).parent.name == 'val2017' for name in images.names)
    for batch in images:
        assert sum(len(x) for x in batch) == 3
        assert all(side % 32 == 0 and 320 <= side <= 1344 for x in batch for side in x.shape[2:])


# ---------------------------------------------------------------- errors


def test_unreadable_images_are_named_once_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = coloured(tmp_path, 10)
    paths[2].write_bytes(b'not an image')
    paths[3].unlink()
    paths[3].symlink_to(tmp_path / 'gone.png')
    images = RecoveryImages(PLAIN, tmp_path, CLASSIFIER, batch_size=5)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        passes = [[colours(batch) for batch in images] for _ in range(2)]
    finally:
        logger.removeHandler(caplog.handler)
    assert [[len(batch) for batch in one] for one in passes] == [[5, 5]] * 2
    readable = {0, 1, *range(4, 10)}
    assert all(set(sum(one, [])) == readable for one in passes)
    assert set(images.skipped) == set(map(str, paths[2:4]))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert len(warnings) == 2 and all(any(str(path) in text for text in warnings) for path in paths[2:4])


def test_too_few_readable_images(tmp_path: Path) -> None:
    for path in coloured(tmp_path, 10)[:3]:
        path.write_bytes(b'not an image')
    images = RecoveryImages(PLAIN, tmp_path, CLASSIFIER)
    with pytest.raises(ToolError, match=r'7 images can be read, needed: at least 8; 3 cannot .*\n.*00.png'):
        list(images)


def test_sources_that_are_refused(tmp_path: Path) -> None:
    coloured(tmp_path / 'few', 3)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('a.jpg')
    (tmp_path / 'list.json').write_text('[1, 2]')
    (tmp_path / 'broken.json').write_text('{"images": [')
    (tmp_path / 'none.json').write_text('{"images": []}')
    for source, message in {
        'few': '3 images found, needed: at least 8',
        'few/00.png': '1 images found, needed: at least 8',
        'empty': r'has no images \(\.jpg, .*allowed: a folder',
        'few/*.jpg': r'has no images \(\.jpg, .*allowed: a folder',
        'gone': 'does not exist; allowed: a folder',
        'notes.txt': 'is neither an image nor a .json file; allowed: a folder',
        'list.json': 'is not a COCO annotation file.*TypeError',
        'broken.json': 'is not a COCO annotation file.*JSONDecodeError',
        'none.json': '0 images found, needed: at least 8',
    }.items():
        place = re.escape(str(tmp_path / source))
        with pytest.raises(ToolError, match=f"--recover '{place}'(:)? ?{message}"):
            RecoveryImages(PLAIN, tmp_path / source, CLASSIFIER)


def test_configs_that_are_refused(tmp_path: Path) -> None:
    coloured(tmp_path, 8)
    with pytest.raises(ToolError, match="--recover 'train': config None has no train_dataloader"):
        RecoveryImages(PLAIN, 'train', CLASSIFIER)
    with pytest.raises(ToolError, match="--recover 'train': .*instances_train.json"):
        RecoveryImages(detection_config(tmp_path), 'train', DETECTOR)
    with pytest.raises(ToolError, match='has no test_dataloader'):
        RecoveryImages(Config(dict(model=dict())), tmp_path, CLASSIFIER)
    needs_boxes = detection_config()
    needs_boxes.test_dataloader.dataset.pipeline.insert(2, dict(type='MinIoURandomCrop'))
    with pytest.raises(ToolError, match=r'test pipeline fails on .*\.png.* without annotations: .*gt_bboxes'):
        list(RecoveryImages(needs_boxes, tmp_path, DETECTOR, batch_size=1))


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    coloured(tmp_path, 8)
    for name, value in dict(batch_size=0, num_images=7, seed=-1, min_images=0, num_workers=-1).items():
        with pytest.raises(ValueError, match=f'^{name}={value}, allowed: an integer'):
            RecoveryImages(PLAIN, tmp_path, CLASSIFIER, **{name: value})
    with pytest.raises(ValueError, match='model is a Linear, allowed: one with a data_preprocessor'):
        RecoveryImages(PLAIN, tmp_path, nn.Linear(1, 1))
