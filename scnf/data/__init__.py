"""Datasets as tensors, by name, and what is done to them on the way to a model."""
