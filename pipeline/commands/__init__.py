"""The commands of the command line, a module for each group of them; `pipeline.cli` puts them together."""
