"""The Open Inference Protocol over gRPC, as Triton's clients use it; only imported where `grpc_port` is set."""
