"""How well videos show the subjects of their pictures: OpenS2V-Eval's measures without closed models, and our own."""
