"""Propagate labels to unlabelled rows over graphs of nearest neighbours."""
