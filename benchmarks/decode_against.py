"""Decoding of ordinary JPEGs and PNGs in two source trees, in turns, so that a change can be held against its parent.

    python benchmarks/decode_against.py --against ../other-checkout --json out.json

Each tree runs in a process of its own. CPU time of the thread is measured; figures are medians over the rounds. A ratio
above 1 says that this tree is faster.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"small": (240, 320), "large": (1500, 2000)}
REPEATS = {"small": 40, "large": 2}
MIN_SIDE_PX = 256


def main() -> None:
    """Parse, measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="CPU time of decoding, here and in another source tree.")
    parser.add_argument("--against", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=25, help="measurements of each tree (25)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the medians to this file")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer(arguments.answer)
        return
    if arguments.against is None:
        parser.error("--against is missing")
    trees = [str(arguments.against.resolve()), str(Path(__file__).resolve().parent.parent)]
    command = [sys.executable, __file__, "--answer"]
    processes = [
        subprocess.Popen([*command, tree], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for tree in trees
    ]
    measured: list[list[dict[str, float]]] = [[], []]
    for turn in range(arguments.rounds):
        for number in (0, 1) if turn % 2 else (1, 0):
            process = processes[number]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("measure\n")
            process.stdin.flush()
            measured[number].append(json.loads(process.stdout.readline()))
    for process in processes:
        process.communicate()
    results = {}
    for name in measured[0][0]:
        other, here = (statistics.median(one[name] for one in tree) for tree in measured)
        results[name] = {"other_ms": round(other, 3), "here_ms": round(here, 3), "ratio": round(other / here, 3)}
        print(f"{name:12}{other:9.3f} ms{here:9.3f} ms   ratio {other / here:.3f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def answer(tree: str) -> None:
    """A measurement, as a line of JSON, for each line that comes in."""
    sys.path.insert(0, tree)
    from embedserve.images import codec

    if not str(codec.__file__).startswith(tree):
        raise SystemExit(f"embedserve comes from {codec.__file__}, not from {tree}")
    files = {}
    for size, (height, width) in SIZES.items():
        noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        for format in ("JPEG", "PNG"):
            out = io.BytesIO()
            image.save(out, format)
            files[f"{size} {format}"] = (out.getvalue(), REPEATS[size])
    for _ in sys.stdin:
        times = {}
        for name, (data, repeats) in files.items():
            begun = time.thread_time()
            for _ in range(repeats):
                codec.decode(data, min_side_px=MIN_SIDE_PX)
            times[name] = (time.thread_time() - begun) * 1000 / repeats
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
