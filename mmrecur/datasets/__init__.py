"""Data the libraries lack: generators of synthetic data sets."""

from .shapes import CLASSES, Instance, Scene, ShapesConfig, render_scene, write_split

__all__ = ['CLASSES', 'Instance', 'Scene', 'ShapesConfig', 'render_scene', 'write_split']
