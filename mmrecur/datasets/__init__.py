"""Data the libraries lack: generators of synthetic data sets."""

from mmrecur.datasets.shapes import CLASSES, Instance, Scene, ShapesConfig, render_scene, write_split
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
    'render_scene',
    'write_split',
]
