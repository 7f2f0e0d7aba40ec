"""On ``PYTHONPATH`` it hides PyTorch from a process from its start; see ``pytest --without-torch``."""

import sys

for name in ("torch", "torchvision"):
    sys.modules[name] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
