"""What ``tools/_before_torch.py`` does, where the scripts of this folder find it."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / '_before_torch.py'))
