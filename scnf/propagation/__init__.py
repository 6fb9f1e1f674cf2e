"""Labels for unlabelled rows, by their neighbours: graphs of neighbours, labels that spread over them, and when."""
