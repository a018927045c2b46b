"""Where the pixels of stage two come from: decoded and rendered each time, or kept in files between epochs and runs."""
