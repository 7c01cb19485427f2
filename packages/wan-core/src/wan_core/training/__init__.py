"""Training parts: objective, optimizers, state, loop; each usable on its own."""
