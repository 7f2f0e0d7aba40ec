"""Rewrite the golden loss curves. Only for a change that is meant to change what a method computes:

PYTHONPATH=.:training python tests/training/golden/make.py
"""

from __future__ import annotations

import json

from tests.training.golden.curves import CASES, FILE, losses

if __name__ == "__main__":
    curves = {name: [round(loss, 6) for loss in losses(name)] for name in CASES}
    lines = [f"  {json.dumps(name)}: {json.dumps(curve)}" for name, curve in curves.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
