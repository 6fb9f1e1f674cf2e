"""Load datasets by name as tensors, and prepare them for a model."""
