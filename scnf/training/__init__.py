"""Train, evaluate and checkpoint a model, with training as a function over (model, objective, batches, run)."""
