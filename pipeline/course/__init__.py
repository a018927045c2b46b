"""The course server: a file is checked, handed in once, and asked after."""
