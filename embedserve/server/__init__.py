"""The gRPC server: services over one engine, and their life from start to drained."""
