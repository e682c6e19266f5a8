"""What several engines share: the head on the host, kept models, buffers for ONNX Runtime, the GPU that is here."""
