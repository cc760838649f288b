"""Draw the regions of a photograph in which classifiers see a class, by Grad-CAM.

IMAGE is the photograph. Each --model is the config of a classifier and its weights, which are random if no
checkpoint is given. --layer is a module of the backbone, by default its last block. Needs
`pip install grad-cam`.

    python tools/analysis_tools/plot_cam.py photo.jpg --layer 'layer3[-1]' --size 64 --target horse \\
        --model configs/demo/cifar10_16px/recnet.py recnet.pth \\
        --model configs/demo/cifar10_16px/dr-resnet.py dr-resnet.pth --out cam.png
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.engine.figures import open_figure, picture_path, save_figure
from mmrecur.errors import ToolError, TransferError

#: Part of the path to a layer: an attribute with any number of indices.
STEP = re.compile(r'(\w+)((?:\[-?\d+\])*)')


@dataclass(frozen=True)
class HeatMap:
    """Class activation map of a classifier.

    Attributes:
        name (str): Name of the classifier.
        heat (np.ndarray): Values from 0 to 1, shape (H, W), the size of the input.
        target (str): Name of the class.
        probability (float): Probability that the classifier assigns to the class.
    """

    name: str
    heat: np.ndarray
    target: str
    probability: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help='photograph to classify')
    parser.add_argument(
        '--model', nargs='+', action='append', required=True, metavar=('CONFIG', 'CHECKPOINT'),
        help='a classifier; may be repeated',
    )  # fmt: skip
    parser.add_argument(
        '--layer', help="module of the backbone, as in 'layer4[-1]' (default: the last block)"
    )
    parser.add_argument('--target', help='number or name of the class (default: the most probable one)')
    parser.add_argument('--size', type=int, default=224, help='shorter side of the input (default: 224)')
    parser.add_argument('--out', type=picture_path, required=True, help='file to write: png, pdf or svg')
    args = parser.parse_args(argv)
    if any(len(model) > 2 for model in args.model):
        parser.error('argument --model: more than a config and a checkpoint given')
    if args.size < 1:
        parser.error(f'argument --size: {args.size} given; allowed: at least 1')
    return args


def find_layer(backbone: nn.Module, path: str | None) -> nn.Module:
    """Find the module at a path such as ``layer4[-1].conv3``; None finds the last block.

    Raises:
        ToolError: If there is no such module.
    """
    children = ', '.join(name for name, _ in backbone.named_children())
    if path is None:
        stages = [module for name, module in backbone.named_children() if re.match(r'\D+\d+$', name)]
        blocks = [stage[-1] for stage in stages if hasattr(stage, '__getitem__') and len(stage)]
        if not blocks:
            raise ToolError(f'the backbone has no stages of blocks: name a --layer, one of {children}')
        return blocks[-1]
    module = backbone
    for step in path.split('.'):
        match = STEP.fullmatch(step)
        try:
            module = getattr(module, match[1])
            for index in re.findall(r'-?\d+', match[2]):
                module = module[int(index)]
        except (AttributeError, IndexError, TypeError):
            module = None
        if not isinstance(module, nn.Module):
            raise ToolError(f'--layer {path!r}: no module at {step!r}; the backbone has {children}')
    return module


def target_class(target: str | None, classes: list[str] | None, scores: torch.Tensor) -> int:
    """Return the number of a class given by number or name; None is the most probable class.

    Raises:
        ToolError: If there is no such class.
    """
    if target is None:
        return int(scores.argmax())
    if classes and target in classes:
        return classes.index(target)
    if target.isdecimal() and int(target) < len(scores):
        return int(target)
    names = f', or {", ".join(classes)}' if classes else ''
    raise ToolError(f'--target {target!r}, allowed: a number from 0 to {len(scores) - 1}{names}')


def look(config: str, checkpoint: str | None, image: np.ndarray, args: argparse.Namespace) -> HeatMap:
    """Compute the class activation map of an image of shape (H, W, 3), BGR."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, classes = build_model(*read_model(config)).eval(), None
    if not hasattr(model, 'backbone') or not getattr(model, 'with_head', False):
        raise ToolError(f'{config!r} has no classifier: a backbone with a head')
    if checkpoint:
        loaded = load_checkpoint(checkpoint)
        model.load_state_dict(unwrap(loaded))
        classes = (loaded.get('meta') or {}).get('dataset_meta', {}).get('classes')
    inputs = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    inputs = model.data_preprocessor(dict(inputs=[inputs]), False)['inputs']
    with torch.no_grad():
        scores = model(inputs)[0].softmax(0)
    target = target_class(args.target, list(classes) if classes else None, scores)
    with GradCAM(model, [find_layer(model.backbone, args.layer)]) as cam:
        heat = cam(inputs, [ClassifierOutputTarget(target)])[0]
    name = str(classes[target]) if classes else f'class {target}'
    return HeatMap(Path(config).stem, heat, name, float(scores[target]))


def plot_heat_maps(image: np.ndarray, maps: list[HeatMap]) -> Figure:
    """Draw the image, shape (H, W, 3), BGR, and next to it an overlay of each map."""
    from pytorch_grad_cam.utils.image import show_cam_on_image

    columns = min(3, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    height, width = image.shape[:2]
    figure, grid = open_figure(3 * columns, rows * (3 * height / width + 0.5), rows, columns)
    image = np.ascontiguousarray(image[..., ::-1])
    for axes in grid.flat:
        axes.axis('off')
    grid.flat[0].imshow(image)
    for axes, seen in zip(grid.flat[1:], maps):
        heat = mmcv.imresize(seen.heat, (width, height))
        axes.imshow(show_cam_on_image(image.astype(np.float32) / 255, heat, use_rgb=True))
        axes.set_title(f'{seen.name}\n{seen.target}: {100 * seen.probability:.0f} %', fontsize=9)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    if importlib.util.find_spec('pytorch_grad_cam') is None:
        raise ToolError('the package pytorch_grad_cam is missing: pip install grad-cam')
    image = mmcv.imread(args.image) if Path(args.image).is_file() else None
    if image is None:
        raise ToolError(f'{args.image}: no image')
    sides = [max(1, round(args.size * side / min(image.shape[:2]))) for side in image.shape[1::-1]]
    shown = mmcv.imresize(image, tuple(sides), interpolation='area')
    # The libraries log to stdout, which is reserved for the result.
    with contextlib.redirect_stdout(sys.stderr):
        maps = []
        for config, *checkpoint in args.model:
            try:
                maps.append(look(config, *(checkpoint or [None]), shown, args))
            except (RuntimeError, TransferError, ValueError) as error:
                raise ToolError(f'{config}: {error}') from error
        save_figure(plot_heat_maps(image, maps), args.out)
    for seen in maps:
        print(f'{seen.name}: {seen.target} {seen.probability:.3f}')
    print(f'Wrote {args.out}', file=sys.stderr)


if __name__ == '__main__':
    with clean_errors():
        main()
