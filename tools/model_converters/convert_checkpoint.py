"""Convert a checkpoint of a paper's authors for a model of this package.

    python tools/model_converters/convert_checkpoint.py theirs.pth ours.pth --source rlanet \\
        --config configs/rla/rla-resnet50_4xb64_in1k.py --cfg-options model.backbone.variant=v3

The sources are the code of RLA (rlanet), ResNet-Shared (net_rl2) and SWRN (soft_sharing). Nothing in the file
is executed. The model is run once on random input, and a report is written beside the result.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse

from mmrecur.apis.checkpoints import add_file_arguments, transfer_file
from mmrecur.apis.runner import clean_errors
from mmrecur.checkpoint import convert
from mmrecur.checkpoint.converters.convert import CONVERTERS


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(parser)
    parser.add_argument(
        '--source', required=True, choices=sorted(CONVERTERS), help='code that wrote SRC, see above'
    )
    args = parser.parse_args(argv)
    report = transfer_file(
        args, lambda state, model: convert(state, args.source, model, strict=not args.no_strict)
    )
    print(report)
    print(f'Wrote {args.dst}')


if __name__ == '__main__':
    with clean_errors():
        main()
