"""The parts of a training run: settings, what a student is shown and told, one step, validation, words about it."""
