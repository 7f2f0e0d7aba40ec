"""The encoder behind mosec: a Rust HTTP server in front of Python worker processes."""

from __future__ import annotations

from typing import Any

from mosec import Server, ValidationError, Worker
from mosec.mixin import MsgpackMixin
from shared import Encoder, ImageError, Settings

SETTINGS = Settings.of_environment()


class Embed(MsgpackMixin, Worker):
    """One stage: decoding and the encoder in the same worker, so that nothing large passes between processes."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(SETTINGS)

    def forward(self, data: Any) -> Any:
        # With max_batch_size above 1 mosec passes a list of requests, each a list of images.
        requests = data if SETTINGS.max_batch > 1 else [data]
        images = [image for request in requests for image in request]
        try:
            vectors = self.encoder.embed(images)
        except ImageError as error:
            raise ValidationError(error.message) from error
        answers, begin = [], 0
        for request in requests:
            answers.append(vectors[begin : begin + len(request)].tobytes())
            begin += len(request)
        return answers if SETTINGS.max_batch > 1 else answers[0]

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Embed, num=SETTINGS.workers, max_batch_size=SETTINGS.max_batch, max_wait_time=SETTINGS.max_wait_ms or 1
    )
    server.run()
