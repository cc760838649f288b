"""Calibrate the gates of a trained DR-ResNet or DR-MobileNetV2: the same rates in evaluation as in training.

CONFIG is the config of a classifier or detector with such a backbone, CHECKPOINT its weights. Gates decide
with noise in training and without noise in evaluation, where they may let nearly all images pass. The tool
shifts the biases of the gates and writes a checkpoint for evaluation. It uses training images without their
labels, processed by the test pipeline, and holds all of them in memory at once.

    python tools/model_converters/calibrate_gates.py configs/dr_resnet/dr-resnet32_1xb256_cifar10.py \\
        epoch_350.pth calibrated.pth --test
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import sys
from pathlib import Path

from mmengine.config import DictAction
from mmengine.device import get_device
from torch import Tensor, nn

from mmrecur.analysis.loop_recorder import find_loop_backbone
from mmrecur.apis.checkpoints import check_out, put_checkpoint
from mmrecur.apis.dataset_images import build_test_loader
from mmrecur.apis.runner import clean_errors, load_config
from mmrecur.apis.specs import registry_scope
from mmrecur.apis.summary import print_results
from mmrecur.apis.tying import load_model, metrics_before_and_after
from mmrecur.checkpoint.calibrate_gates import calibrate_gates
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config, or mmrecur::PATH')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument(
        '--rate', type=float, help='target rate of the gates (default: that of their objective)'
    )
    parser.add_argument(
        '--num-images', type=int, default=512, help='number of training images (default: 512)'
    )
    parser.add_argument('--test', action='store_true', help='test the model before and after')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    args = parser.parse_args(argv)
    if args.num_images < 2:
        parser.error(f'argument --num-images: {args.num_images} given; allowed: at least 2')
    return args


def read_images(cfg: dict, model: nn.Module, number: int) -> Tensor:
    """Return preprocessed training images, shape (N, C, H, W)."""
    loader, _ = build_test_loader(cfg, number, number, training=True, spread=True)
    with registry_scope(cfg.get('default_scope')):
        (batch,) = loader
        return model.data_preprocessor(batch, False)['inputs']


def write(source: str, destination: str, model: nn.Module) -> None:
    """Write a copy of the source checkpoint with the weights of the model."""
    meta = load_checkpoint_file(source).get('meta') or {}
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    put_checkpoint(state, dict(meta, calibrated=Path(source).name), destination)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    check_out(args.out, args.checkpoint)
    # keep the log messages of the libraries out of the result on stdout
    with contextlib.redirect_stdout(sys.stderr):
        cfg = load_config(args.config, args.cfg_options)
        model = load_model(cfg, args.checkpoint).to(get_device())
        try:
            _, backbone = find_loop_backbone(model)
            shifts = calibrate_gates(backbone, read_images(cfg, model, args.num_images), args.rate)
        except ValueError as error:
            raise ToolError(f'{args.config}: {error}') from error
        write(args.checkpoint, args.out, model)
        metrics = ''
        if args.test:
            metrics = metrics_before_and_after((cfg, args.checkpoint), (cfg, args.out))
    for name, shift in shifts.items():
        print(f'{name}: score of passing {shift:+.4f}')
    if metrics:
        print(metrics)
    print_results({'checkpoint': args.out})


if __name__ == '__main__':
    with clean_errors():
        main()
