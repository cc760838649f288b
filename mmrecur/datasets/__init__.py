"""Data the libraries lack: generators of synthetic data sets."""

from .shapes import CLASSES, Instance, Scene, ShapesConfig, render_scene, write_split
from .shortest_path import ShortestPaths, generate_shortest_paths
from .transforms import CenteredCutout

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
