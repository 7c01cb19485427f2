"""Weight files of every kind as sources of tensors, read one at a time."""
