"""Training as a function over (model, objective, batches, optimizer, run)."""
