"""What there is of GPUs on this machine: NVIDIA's driver and devices, and the TensorRT that is installed."""
