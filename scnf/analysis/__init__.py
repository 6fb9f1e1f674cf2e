"""What one looks at: samples, curves, and all runs as a table."""
