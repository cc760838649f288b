"""Evaluate checkpoints: predictions, pictures and test-time augmentation for configs of each library."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS
from mmengine.runner import Runner

from mmrecur.apis.checks import check_data
from mmrecur.apis.loading import load_strictly
from mmrecur.apis.widths import explained_widths
from mmrecur.errors import ToolError

#: Parts that write predictions, draw them and augment images, by library. Their types have no scope, because
#: some are registered in MMEngine's root, where a name with a scope is not found.
_LIBRARIES = {
    'mmdet': dict(
        dump='DumpDetResults',
        visualization=dict(type='DetVisualizationHook', draw=True),
        picture_dir='test_out_dir',
        tta_model=dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
        # Undoing the flip on the boxes requires its packed values.
        packing=dict(
            type='PackDetInputs',
            meta_keys=(
                'img_id',
                'img_path',
                'ori_shape',
                'img_shape',
                'scale_factor',
                'flip',
                'flip_direction',
            ),
        ),
    ),
    'mmpretrain': dict(
        dump='DumpResults',
        visualization=dict(type='VisualizationHook', enable=True, interval=1),
        picture_dir='out_dir',
        tta_model=dict(type='AverageClsScoreTTA'),
        packing=None,
    ),
}


def _library_of(cfg: Config, option: str) -> dict:
    """Return the parts of the library that a config belongs to."""
    scope = cfg.get('default_scope')
    if scope not in _LIBRARIES:
        raise ToolError(
            f'{option}: the default_scope of the config is {scope!r}; allowed: {", ".join(_LIBRARIES)}'
        )
    return _LIBRARIES[scope]


def draw_into(cfg: Config, directory: str) -> None:
    """Change a config so that its test draws the predictions on the images.

    Args:
        cfg (Config): Config of a detector or classifier, changed in place.
        directory (str): Folder of the pictures.

    Raises:
        ToolError: If the config has no visualizer or belongs to another library.
    """
    library = _library_of(cfg, '--show-dir')
    # mmdet writes to the work directory unless the path is absolute.
    directory = str(Path(directory).absolute())
    hook = {**library['visualization'], library['picture_dir']: directory}
    cfg.setdefault('default_hooks', {})['visualization'] = hook
    if cfg.get('visualizer') is None:
        raise ToolError('--show-dir: the config has no visualizer')


def check_dump(cfg: Config) -> None:
    """Raise ToolError if the predictions of a config cannot be written to a file."""
    _library_of(cfg, '--out')


def dump_predictions(runner: Runner, path: str) -> None:
    """Let the test of a runner write its predictions to a pickle file.

    Args:
        runner (Runner): Runner of a detector or classifier.
        path (str): The file.
    """
    metric = dict(type=_library_of(runner.cfg, '--out')['dump'], out_file_path=path)
    runner.test_evaluator.metrics.append(METRICS.build(metric))


def use_tta(cfg: Config) -> None:
    """Change a config so that its test uses test-time augmentation.

    ``tta_model`` and ``tta_pipeline`` of the config are used if they exist. Otherwise, the predictions for
    the image and the flipped image are combined.

    Args:
        cfg (Config): Config of a detector or classifier, changed in place.

    Raises:
        ToolError: If no pipeline can be derived from the test pipeline, or if the config belongs to another
            library.
    """
    library = _library_of(cfg, '--tta')
    innermost = cfg.test_dataloader.dataset
    while 'dataset' in innermost:
        innermost = innermost['dataset']
    if cfg.get('tta_pipeline') is None:
        pipeline = deepcopy(innermost.pipeline)
        packing = pipeline[-1]
        if 'Pack' not in str(packing.get('type')):
            raise ToolError(
                '--tta: the config has no tta_pipeline, and none can be derived from its test pipeline: it '
                f'ends in {packing.get("type")!r}; allowed: a step that packs the inputs'
            )
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [library['packing'] or packing]])
        cfg.tta_pipeline = pipeline
    tta_model = cfg.get('tta_model') or library['tta_model']
    cfg.model = ConfigDict(**deepcopy(tta_model), module=cfg.model)
    if 'data_preprocessor' in cfg:  # The runner would give it to the outer model.
        cfg.model.module.setdefault('data_preprocessor', cfg.pop('data_preprocessor'))
    innermost.pipeline = cfg.tta_pipeline


def evaluate(runner: Runner) -> dict[str, float]:
    """Check the data of a runner, load exactly the weights of its checkpoint, and test.

    Args:
        runner (Runner): Runner with a checkpoint to load.

    Returns:
        dict[str, float]: Metrics by name.

    Raises:
        CheckpointError: If the checkpoint does not fit the model.
        ToolError: If the data do not fit the model.
    """
    check_data(runner, 'test')
    load_strictly(runner)
    with explained_widths(runner):
        return runner.test()
