"""Evaluate a checkpoint of any detector or classifier of mmdet, mmpretrain or mmrecur.

python tools/test.py CONFIG CHECKPOINT [--out FILE.pkl] [--show-dir DIR] [--tta]
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import json
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.fileio import get_file_backend
from mmengine.registry import METRICS
from mmengine.runner import Runner

from mmrecur.apis.checks import check_data, check_writable_folder
from mmrecur.apis.loading import check_weights, load_strictly
from mmrecur.apis.runner import (
    add_common_arguments,
    build_runner,
    clean_errors,
    leave_processes,
    prepare_config,
)
from mmrecur.apis.summary import print_metrics, print_results
from mmrecur.apis.widths import explained_widths
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import ToolError

#: What each library calls the parts that --out, --show-dir and --tta need. No scope is given: some
#: are registered in MMEngine's root, where a scoped name does not find them.
LIBRARIES = {
    'mmdet': dict(
        dump='DumpDetResults',
        visualization=dict(type='DetVisualizationHook', draw=True),
        picture_dir='test_out_dir',
        tta_model=dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
        # The flip has to be undone on the boxes, so it must be packed with them.
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of a config, or mmdet::PATH, mmpretrain::PATH, mmrecur::PATH')
    parser.add_argument('checkpoint', help='weights to evaluate, a file or an URL')
    add_common_arguments(parser)
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to a pickle file')
    parser.add_argument('--show-dir', help='write the images with the predictions drawn on them')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: as the config says (tta_model, tta_pipeline), or by flipping',
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'argument --out: {args.out!r} given; allowed: a name that ends in .pkl')
    return args


def library_of(cfg: Config, option: str) -> dict:
    """Returns the parts that the config's library has for an option."""
    scope = cfg.get('default_scope')
    if scope not in LIBRARIES:
        raise ToolError(
            f'{option}: default_scope of the config is {scope!r}; allowed: {", ".join(LIBRARIES)}'
        )
    return LIBRARIES[scope]


def draw_into(cfg: Config, directory: str) -> None:
    """Has the predictions drawn on the test images."""
    library = library_of(cfg, '--show-dir')
    # Absolute, because mmdet puts anything else into the work directory.
    directory = str(Path(directory).absolute())
    hook = {**library['visualization'], library['picture_dir']: directory}
    cfg.setdefault('default_hooks', {})['visualization'] = hook
    if cfg.get('visualizer') is None:
        raise ToolError('--show-dir: the config has no visualizer')


def use_tta(cfg: Config) -> None:
    """Wraps the model and the test pipeline for test-time augmentation."""
    library = library_of(cfg, '--tta')
    innermost = cfg.test_dataloader.dataset
    while 'dataset' in innermost:
        innermost = innermost['dataset']
    if cfg.get('tta_pipeline') is None:
        pipeline = deepcopy(innermost.pipeline)
        packing = pipeline[-1]
        if 'Pack' not in str(packing.get('type')):
            raise ToolError(
                '--tta: the config has no tta_pipeline, and none can be made from its test '
                f'pipeline, which ends in {packing.get("type")!r} not in a step that packs'
            )
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [library['packing'] or packing]])
        cfg.tta_pipeline = pipeline
    tta_model = cfg.get('tta_model') or library['tta_model']
    cfg.model = ConfigDict(**deepcopy(tta_model), module=cfg.model)
    if 'data_preprocessor' in cfg:  # belongs to the model inside, where the runner would not put it
        cfg.model.module.setdefault('data_preprocessor', cfg.pop('data_preprocessor'))
    innermost.pipeline = cfg.tta_pipeline


def evaluate(runner: Runner) -> dict[str, float]:
    """Runs the test with exactly the weights of the checkpoint, once the data are known to fit."""
    check_data(runner, 'test')
    load_strictly(runner)
    with explained_widths(runner):
        return runner.test()


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    cfg = prepare_config(args)
    for part in ('test_cfg', 'test_dataloader', 'test_evaluator'):
        if cfg.get(part) is None:
            raise ToolError(f'config {args.config!r} has no {part}: it describes no test')
    if '://' not in args.checkpoint:
        check_weights(args.checkpoint, load_checkpoint_file(args.checkpoint))
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show_dir and args.tta and cfg.get('default_scope') == 'mmpretrain':
        raise ToolError('--show-dir: mmpretrain cannot draw with --tta; leave one of them out')
    if args.out:
        check_writable_folder(Path(args.out).parent, 'folder of --out', 'choose another one')
    if args.show_dir:
        check_writable_folder(args.show_dir, '--show-dir', 'choose another one')
        draw_into(cfg, args.show_dir)
    if args.tta:
        use_tta(cfg)
    dump = library_of(cfg, '--out')['dump'] if args.out else None
    runner = build_runner(cfg)
    if dump:
        metric = dict(type=dump, out_file_path=args.out)
        runner.test_evaluator.metrics.append(METRICS.build(metric))
    metrics = evaluate(runner)
    if is_main_process():
        report(runner, args, metrics)
    leave_processes(runner)


def report(runner: Runner, args: argparse.Namespace, metrics: dict[str, float]) -> None:
    """Prints the metrics, writes them to a file, and says where everything is."""
    path = Path(runner.log_dir) / 'metrics.json'
    values = {name: float(value) for name, value in metrics.items()}
    get_file_backend(path).put_text(json.dumps(values, indent=2) + '\n', path)
    print_metrics(values, f'{args.checkpoint} on the test data')
    print('Results:', flush=True)
    results = {'metrics': str(path), 'log': str(path.parent / f'{runner.timestamp}.log')}
    if args.out:
        results['predictions'] = args.out
    if args.show_dir:
        results['pictures'] = args.show_dir
    print_results(results)


if __name__ == '__main__':
    with clean_errors():
        main()
