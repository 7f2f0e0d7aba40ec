"""A bare server: grpc.aio, a thread pool, onnxruntime. No queue, no batches."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
from shared import Encoder, ImageError, Settings

from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1 import embedding_service_pb2_grpc as pb_grpc


class EmbeddingService(pb_grpc.EmbeddingServiceServicer):
    """Only `Embed`, with the messages of embedserve, so that both have the same client."""

    def __init__(self, settings: Settings) -> None:
        self.encoder = Encoder(settings)
        self.pool = ThreadPoolExecutor(settings.workers)

    async def Embed(
        self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext[pb.EmbedRequest, pb.EmbedResponse]
    ) -> pb.EmbedResponse:
        loop = asyncio.get_running_loop()
        try:
            vectors = await loop.run_in_executor(self.pool, self.encoder.embed, list(request.images))
        except ImageError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        response = pb.EmbedResponse()
        for vector in vectors:
            response.results.add().vector.packed_f32 = vector.tobytes()
        return response


async def main() -> None:
    """Serve until SIGTERM."""
    settings = Settings.of_environment()
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    pb_grpc.add_EmbeddingServiceServicer_to_server(EmbeddingService(settings), server)
    server.add_insecure_port(f"127.0.0.1:{settings.port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=30)


if __name__ == "__main__":
    asyncio.run(main())
