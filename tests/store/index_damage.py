"""What may happen to the files of an index, which a store must survive."""

from __future__ import annotations

import shutil
from pathlib import Path

DAMAGE = ["none", "none", "all removed", "a file removed", "a file cut", "a bit flipped", "no list of segments"]


def do_damage(directory: Path, damage: str, where: int) -> bool:
    """Damage files of segments; whether there were any."""
    folders = [path.parent for path in sorted(directory.glob("data/collections/*/segments/CURRENT.json"))]
    files = sorted(directory.glob("data/collections/*/segments/*/*"))
    if damage == "none" or not files:
        return False
    file = files[where % len(files)]
    match damage:
        case "all removed":
            for folder in folders:
                shutil.rmtree(folder)
        case "no list of segments":
            (file.parents[1] / "CURRENT.json").unlink()
        case "a file removed":
            file.unlink()
        case "a file cut":
            file.write_bytes(file.read_bytes()[: where % file.stat().st_size])
        case "a bit flipped":
            content = bytearray(file.read_bytes())
            content[where % len(content)] ^= 1 << where % 8
            file.write_bytes(content)
    return True
