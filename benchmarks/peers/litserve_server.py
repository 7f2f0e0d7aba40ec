"""The encoder behind LitServe: FastAPI in one process, workers in others, a queue between them."""

from typing import Annotated

import litserve as ls
import msgpack
from fastapi import Body, HTTPException, Response
from shared import Encoder, ImageError, Settings

SETTINGS = Settings.of_environment()


class Embed(ls.LitAPI):
    """Takes the body as bytes; with batching, LitServe passes the result of `batch`."""

    def setup(self, device: str) -> None:
        self.encoder = Encoder(SETTINGS)

    # FastAPI reads the annotations, so they must not be postponed.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/msgpack")]) -> list[bytes]:
        return msgpack.unpackb(request)

    def batch(self, inputs: list[list[bytes]]) -> list[list[bytes]]:
        return inputs

    def predict(self, x: list) -> list[bytes] | bytes:
        requests = x if SETTINGS.max_batch > 1 else [x]
        try:
            vectors = self.encoder.embed([image for request in requests for image in request])
        except ImageError as error:
            raise HTTPException(status_code=400, detail=error.message) from error
        answers, begin = [], 0
        for request in requests:
            answers.append(vectors[begin : begin + len(request)].tobytes())
            begin += len(request)
        return answers if SETTINGS.max_batch > 1 else answers[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Embed(max_batch_size=SETTINGS.max_batch, batch_timeout=SETTINGS.max_wait_ms / 1000)
    server = ls.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=SETTINGS.workers, timeout=False, fast_queue=True
    )
    # One HTTP process is enough for two cores; more would take the cores from the workers.
    server.run(host="127.0.0.1", port=SETTINGS.port, num_api_servers=1, log_level="warning", generate_client_file=False)
