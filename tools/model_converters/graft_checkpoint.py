"""Graft a plain network's checkpoint, or a whole detector's, into a model of this package.

    python tools/model_converters/graft_checkpoint.py faster-rcnn_r50.pth faster-rcnn_rla-r50.pth \\
        --config configs/rla/faster-rcnn_rla-r50_fpn_1x_coco.py

The new model computes the same as the old one where this is possible; otherwise the report holds the errors
of the fit. Files of MMEngine, timm, torchvision, Lightning and plain torch are accepted, with or without a
moving average. Nothing in the file is executed. The model is run once on random input, and a report is
written beside the result.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
from typing import Any

from torch import Tensor, nn

from mmrecur.apis.checkpoints import add_file_arguments, transfer_file
from mmrecur.apis.runner import clean_errors
from mmrecur.checkpoint import Report, graft


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(parser)
    parser.add_argument(
        '--prefix', help='read only the keys that start with it and remove it from them, such as "teacher." '
        'of a semi-supervised detector',
    )  # fmt: skip
    parser.add_argument(
        '--no-ema',
        action='store_true',
        help='use the weights, not their moving average, if the file holds both',
    )
    args = parser.parse_args(argv)

    def function(checkpoint: dict[str, Any], model: nn.Module) -> tuple[dict[str, Tensor], Report]:
        return graft(checkpoint, model, strict=not args.no_strict, prefix=args.prefix, ema=not args.no_ema)

    report = transfer_file(args, function)
    print(report)
    print(f'Wrote {args.dst}')


if __name__ == '__main__':
    with clean_errors():
        main()
