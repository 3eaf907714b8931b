"""From a standard graph to a TensorRT engine with a manifest, and back to the engine that fits here."""
