"""The renderer of shapes: exact masks, visibility, determinism, and files that the libraries can read."""

import hashlib
import json

import cv2
import numpy as np
import pytest

from mmrecur.datasets.shapes import CLASSES, MIN_VISIBLE_PIXELS, render_scene
from mmrecur.datasets.shapes_dataset import ShapesConfig, write_split

SMALL = ShapesConfig(num_train=12, num_val=8, size=(96, 128))


@pytest.fixture(scope='module')
def detection(tmp_path_factory):
    root = tmp_path_factory.mktemp('detection')
    counts = {split: write_split(root, SMALL, split) for split in ('train', 'val')}
    return root, counts


@pytest.mark.parametrize('size', [(128, 128), (32, 32), (40, 200)])
def test_masks_are_exactly_the_painted_pixels(size):
    for index in range(60):
        scene = render_scene(3, 'train', index, size)
        assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
        owners = np.sum([instance.mask for instance in scene.instances], axis=0)
        painted = (scene.image != scene.background).any(-1)
        assert owners.max() == 1  # later shapes take the pixels from earlier ones
        assert np.array_equal(painted, owners == 1)


def test_boxes_and_areas_belong_to_the_visible_pixels():
    for index in range(60):
        scene = render_scene(0, 'val', index, max_objects=8)
        assert 1 <= len(scene.instances) <= 8
        for instance in scene.instances:
            x, y, w, h = instance.bbox
            assert instance.mask[y : y + h, x : x + w].sum() == instance.area == instance.mask.sum()
            assert instance.mask[y].any() and instance.mask[y + h - 1].any()
            assert instance.mask[:, x].any() and instance.mask[:, x + w - 1].any()
            assert instance.area >= MIN_VISIBLE_PIXELS


def test_shapes_overlap_and_stay_visible_in_crowded_pictures():
    scenes = [render_scene(0, 'train', index, (48, 48), max_objects=40) for index in range(30)]
    counts = [len(scene.instances) for scene in scenes]
    assert min(counts) >= 1 and max(counts) < 40  # no place was found for some shapes, so they were left out
    assert min(i.area for scene in scenes for i in scene.instances) >= MIN_VISIBLE_PIXELS
    for scene in scenes:
        boxes = np.zeros(scene.image.shape[:2], int)
        for x, y, w, h in (instance.bbox for instance in scene.instances):
            boxes[y : y + h, x : x + w] += 1
        assert boxes.max() > 1 or len(scene.instances) < 4


def _holes(mask: np.ndarray) -> int:
    padded = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    components, _ = cv2.connectedComponents(padded, connectivity=4)
    return components - 2  # without the label of the shape itself and that of the background


def test_only_rings_have_a_hole():
    for label, name in enumerate(CLASSES):
        whole = []
        for index in range(20):
            (instance,) = render_scene(0, 'train', index, label=label).instances
            assert instance.label == label
            x, y, w, h = instance.bbox
            if x > 0 and y > 0 and x + w < 128 and y + h < 128:
                whole.append(_holes(instance.mask))
        assert len(whole) > 5 and set(whole) == {int(name == 'ring')}


def test_sizes_and_backgrounds_vary():
    scenes = [render_scene(0, 'train', index, max_objects=1) for index in range(100)]
    longest = np.array([max(scene.instances[0].bbox[2:]) for scene in scenes])
    assert longest.max() <= 0.5 * 128 + 2
    assert longest.min() < 0.2 * 128 and longest.max() > 0.4 * 128
    assert {scene.instances[0].label for scene in scenes} == set(range(len(CLASSES)))
    means = np.array([scene.background.mean((0, 1)) for scene in scenes])
    assert means.std(0).min() > 25


def test_shapes_stand_out_from_their_surroundings():
    for index in range(60):
        scene = render_scene(0, 'train', index, max_objects=1)
        mask = scene.instances[0].mask
        inside = scene.image[mask].mean(0)
        assert np.linalg.norm(inside - scene.background[mask].mean(0)) > 50


def test_picture_depends_on_seed_split_and_index_only():
    def digest(*args):
        return hashlib.sha256(render_scene(*args).image.tobytes()).hexdigest()

    assert digest(0, 'train', 5) == digest(0, 'train', 5)
    keys = [(seed, split, i) for seed in (0, 1) for split in ('train', 'val') for i in range(25)]
    assert len({digest(*key) for key in keys}) == len(keys)


def test_training_files_do_not_depend_on_num_val(detection, tmp_path):
    root, _ = detection
    other = ShapesConfig(num_train=12, num_val=3, size=(96, 128))
    write_split(tmp_path, other, 'train')
    files = [path.relative_to(root) for path in root.rglob('*') if 'val' not in str(path.name)]
    files = [path for path in files if (root / path).is_file() and path.parts[0] != 'val']
    assert len(files) == 12 + 1
    for path in files:
        assert (tmp_path / path).read_bytes() == (root / path).read_bytes()


def test_pycocotools_reads_what_was_drawn(detection):
    coco_module = pytest.importorskip('pycocotools.coco')
    root, counts = detection
    coco = coco_module.COCO(str(root / 'annotations' / 'instances_train.json'))
    assert [c['name'] for c in coco.loadCats([1, 2, 3, 4, 5])] == list(CLASSES)
    assert {c['name']: len(coco.getAnnIds(catIds=c['id'])) for c in coco.cats.values()} == counts['train']
    for index, image_id in enumerate(sorted(coco.imgs)):
        scene = render_scene(0, 'train', index, SMALL.size)
        stored = cv2.imread(str(root / 'train' / coco.imgs[image_id]['file_name']))
        assert np.array_equal(stored[..., ::-1], scene.image)
        annotations = coco.imgToAnns[image_id]
        assert len(annotations) == len(scene.instances)
        for annotation, instance in zip(annotations, scene.instances, strict=True):
            assert annotation['category_id'] == instance.label + 1
            assert annotation['bbox'] == instance.bbox and annotation['iscrowd'] == 0
            assert annotation['area'] == instance.area
            assert np.array_equal(coco.annToMask(annotation), instance.mask)


def test_mmdet_loads_boxes_and_masks(detection):
    pytest.importorskip('mmdet')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    root, _ = detection
    dataset = CocoDataset(
        ann_file='annotations/instances_val.json',
        data_root=str(root),
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=True)],
    )
    assert len(dataset) == SMALL.num_val
    for index in range(len(dataset)):
        results = dataset[index]
        scene = render_scene(0, 'val', index, SMALL.size)
        masks = np.stack([instance.mask for instance in scene.instances])
        assert np.array_equal(results['gt_masks'].to_ndarray().astype(bool), masks)
        assert results['gt_bboxes_labels'].tolist() == [i.label for i in scene.instances]
        x, y, w, h = np.array([instance.bbox for instance in scene.instances]).T
        boxes = np.stack([x, y, x + w, y + h], axis=1)
        assert np.array_equal(results['gt_bboxes'].tensor.numpy(), boxes)
        assert not results['gt_ignore_flags'].any()


def test_classification_is_an_image_folder_with_one_shape_a_picture(tmp_path):
    config = ShapesConfig(num_train=11, num_val=5, size=(48, 48), task='classification')
    assert write_split(tmp_path, config, 'train') == dict(circle=3, rectangle=2, triangle=2, star=2, ring=2)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.png'))
    assert files == sorted(f'train/{CLASSES[i % 5]}/{i:06d}.png' for i in range(11))
    stored = cv2.imread(str(tmp_path / 'train' / 'star' / '000008.png'))[..., ::-1]
    scene = render_scene(0, 'train', 8, (48, 48), label=3)
    assert np.array_equal(stored, scene.image)
    assert not (tmp_path / 'annotations').exists()


def test_annotation_file_states_its_arguments(detection):
    root, _ = detection
    content = json.loads((root / 'annotations' / 'instances_val.json').read_text())
    assert content['licenses'] == []
    info = content['info']
    assert (info['seed'], info['split'], info['num_images']) == (0, 'val', 8)
    assert info['size'] == [96, 128] and info['max_objects'] == 4


@pytest.mark.parametrize(
    'wrong',
    [
        dict(num_train=0),
        dict(num_val=2.0),
        dict(size=(128, 31)),
        dict(size=128),
        dict(max_objects=0),
        dict(seed=-1),
        dict(seed=True),
        dict(task='keypoints'),
    ],
)
def test_wrong_arguments_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf'{name} is .*; allowed: '):
        ShapesConfig(**wrong)


@pytest.mark.parametrize('wrong', [dict(split='test'), dict(index=-1), dict(label=5), dict(size=(8, 8))])
def test_wrong_picture_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf'{name} is .*; allowed: '):
        render_scene(**(dict(seed=0, split='train', index=0) | wrong))
