"""Generators of synthetic data sets, and transforms that the libraries lack."""

from mmrecur.datasets.shapes import CLASSES, Instance, Scene, render_scene
from mmrecur.datasets.shapes_dataset import ShapesConfig, make_shapes, write_split
from mmrecur.datasets.shortest_path import ShortestPaths, generate_shortest_paths
from mmrecur.datasets.transforms import CenteredCutout

__all__ = [
    'CLASSES',
    'CenteredCutout',
    'Instance',
    'Scene',
    'ShapesConfig',
    'ShortestPaths',
    'generate_shortest_paths',
    'make_shapes',
    'render_scene',
    'write_split',
]
