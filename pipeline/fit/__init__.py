"""Fitting a dual encoder to the images of a data set, before stage one."""
