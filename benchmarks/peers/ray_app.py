"""The encoder behind Ray Serve: a proxy, a controller and replicas, each in a process."""

from __future__ import annotations

import signal
import threading

import msgpack
import ray
from ray import serve
from shared import Encoder, ImageError, Settings
from starlette.requests import Request
from starlette.responses import Response

SETTINGS = Settings.of_environment()


@serve.deployment(
    num_replicas=SETTINGS.workers,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": SETTINGS.to_environment()}},
)
class Embed:
    """A replica answers one request after the other; with a batch, `serve.batch` collects several."""

    def __init__(self) -> None:
        self.encoder = Encoder(SETTINGS)

    async def __call__(self, request: Request) -> Response:
        images = msgpack.unpackb(await request.body())
        try:
            answer = await self.batched(images) if SETTINGS.max_batch > 1 else self.encoder.embed(images).tobytes()
        except ImageError as error:
            return Response(error.message, status_code=400)
        return Response(answer, media_type="application/octet-stream")

    @serve.batch(max_batch_size=SETTINGS.max_batch, batch_wait_timeout_s=SETTINGS.max_wait_ms / 1000)
    async def batched(self, requests: list[list[bytes]]) -> list[bytes]:
        vectors = self.encoder.embed([image for request in requests for image in request])
        answers, begin = [], 0
        for request in requests:
            answers.append(vectors[begin : begin + len(request)].tobytes())
            begin += len(request)
        return answers


if __name__ == "__main__":
    ray.init(num_cpus=SETTINGS.workers, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": SETTINGS.port})
    serve.run(Embed.bind(), route_prefix="/embed")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()  # waits for the replicas to finish their requests
    ray.shutdown()
