"""Losses: pure functions of tensors that return named parts and know nothing of models or loops."""
