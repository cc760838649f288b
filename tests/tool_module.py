"""The tools as modules, so that tests can call their parts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_tool(path: str) -> ModuleType:
    """Load a tool by its path in tools/, such as ``benchmark.py``."""
    script = ROOT / 'tools' / path
    name = f'tool_{script.stem}'
    spec = importlib.util.spec_from_file_location(name, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    if str(script.parent) not in sys.path:
        sys.path.append(str(script.parent))  # as where it is run as a script
    spec.loader.exec_module(module)
    return module
