"""The teacher gate: what a teacher's cached answers are worth, and whether a training may start from them."""
