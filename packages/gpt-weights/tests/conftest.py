"""The folder itself on the path: its tests share the server that misbehaves and the files written by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
