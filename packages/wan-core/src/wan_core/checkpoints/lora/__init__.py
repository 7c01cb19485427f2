"""LoRA files of every naming: read, matched with a network, merged while its weights are read."""
