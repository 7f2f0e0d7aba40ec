"""The encoder behind BentoML: one service, its workers are processes that share the port."""

from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.exceptions import InvalidArgument
from bentoml.validators import ContentType
from shared import Encoder, ImageError, Settings

SETTINGS = Settings.of_environment()


@bentoml.service(workers=SETTINGS.workers, traffic={"timeout": 120})
class Embed:
    """Files of a multipart form reach the method as paths, as in BentoML's documentation of files."""

    def __init__(self) -> None:
        self.encoder = Encoder(SETTINGS)

    def _embed(self, images: list[Path]) -> np.ndarray:
        try:
            return self.encoder.embed([image.read_bytes() for image in images])
        except ImageError as error:
            raise InvalidArgument(error.message) from error

    if SETTINGS.max_batch > 1:

        @bentoml.api(batchable=True, max_batch_size=max(SETTINGS.max_batch, 2), max_latency_ms=60_000)
        def embed(self, images: list[Path]) -> np.ndarray:
            return self._embed(images)

    else:

        @bentoml.api
        def embed(self, images: list[Path]) -> Annotated[bytes, ContentType("application/octet-stream")]:
            return self._embed(images).tobytes()
