"""The encoder behind MLServer: a custom runtime in a pool of worker processes, called by Open Inference Protocol."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import MLServerError
from mlserver.types import InferenceRequest, InferenceResponse
from shared import Encoder, ImageError, Settings


class Embed(MLModel):
    """One tensor of BYTES, an image in each element; with batching MLServer joins the tensors of several requests."""

    async def load(self) -> bool:
        self.encoder = Encoder(Settings.of_environment())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        try:
            vectors = self.encoder.embed(list(payload.inputs[0].data))
        except ImageError as error:
            raise MLServerError(error.message, status_code=400) from error
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("embeddings", vectors)])
