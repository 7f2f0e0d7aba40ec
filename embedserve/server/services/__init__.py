"""The gRPC services, one file each: messages in, the engine, messages out."""
