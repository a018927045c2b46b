"""What the images are: samples, views and loaders. Knows nothing of teachers, caches or students."""
