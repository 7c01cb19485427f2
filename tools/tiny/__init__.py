"""The bundled tiny models: their procedural world, its detectors, training and evaluation."""
