"""What is done: the two stages and the commands around them. Imports `data` and `cache`; they never import it."""
