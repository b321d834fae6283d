"""A tiny Zero123++ folder."""

import json
from pathlib import Path

from checkpoints import write_folder

SIDE = 32
"""Of a view, pixels."""


def write_zero123plus(folder: Path) -> Path:
    """Writes it and returns it."""
    write_folder(folder, "zero123plus")
    ramp = [k / 10 for k in range(11)]
    (folder / "model_index.json").write_text(json.dumps({"ramping_coefficients": ramp}))
    return folder
