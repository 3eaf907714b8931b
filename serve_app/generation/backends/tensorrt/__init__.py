"""The decoder on a GPU: TensorRT engines, steps in flight, and tokens chosen where logits are computed."""
