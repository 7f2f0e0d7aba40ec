"""An embedserve server whose encoder takes a fixed time and no CPU, so that only the server itself is measured.

    python benchmarks/measuring/fixed_time_server.py --ms 10 --runs 2 [--max-queue-images N] [--max-queue-mib N]

Prints the same line as `embedserve serve` when it is ready, and stops on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.encoder.encoder_file import EncoderMetadata
from embedserve.images.preprocess import PreprocessSpec
from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.types import Limits

SIZE_PX, DIMENSION = 32, 128


class FixedTimeEncoder:
    """Sleeps for each image, and returns the same vector for all.

    Args:
        ms_per_image: milliseconds of sleep.
        parallel_runs: images encoded at a time.
    """

    provider = "CPUExecutionProvider"
    fingerprint = "fe" * 32

    def __init__(self, ms_per_image: float, parallel_runs: int) -> None:
        self.metadata = EncoderMetadata(name="fixed", dimension=DIMENSION, preprocess=PreprocessSpec(size_px=SIZE_PX))
        self.parallel_runs = parallel_runs
        self._seconds = ms_per_image / 1000
        self._vector = np.full(DIMENSION, DIMENSION**-0.5, np.float32)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, 3] → float32 [N, D]."""
        time.sleep(self._seconds * len(images))
        return np.tile(self._vector, (len(images), 1))


async def serve(config: ServerConfig, encoder: FixedTimeEncoder) -> None:
    """Until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    server = Server(config)
    await server.listen()
    try:
        await server.load(encoder)
        http = "" if server.http_url is None else f"  HTTP on {server.http_url}"
        print(f"ready        gRPC on 127.0.0.1:{server.port}{http}", file=sys.stderr, flush=True)
        await stopping.wait()
    finally:
        await server.stop()


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(description="A server whose encoder takes a fixed time.")
    parser.add_argument("--ms", type=float, default=10.0, help="time for an image (10)")
    parser.add_argument("--runs", type=int, default=2, help="images encoded at a time (2)")
    parser.add_argument("--max-queue-images", type=int, default=Limits().max_queue_images)
    parser.add_argument("--max-queue-mib", type=int, default=Limits().max_queue_bytes >> 20)
    arguments = parser.parse_args()
    limits = Limits(max_queue_images=arguments.max_queue_images, max_queue_bytes=arguments.max_queue_mib << 20)
    config = ServerConfig(encoder=Path("none"), port=0, http_port=0, max_batch=1, limits=limits)
    asyncio.run(serve(config, FixedTimeEncoder(arguments.ms, arguments.runs)))


if __name__ == "__main__":
    main()
