"""Run ``tools/_before_torch.py``, which the scripts of this folder cannot import."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / '_before_torch.py'))
