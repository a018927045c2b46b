"""Teachers: pixels -> embedding, logits. Only stage one imports this package; stage two never does."""
