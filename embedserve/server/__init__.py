"""The server: gRPC services and HTTP pages over one engine, from start to drain."""
