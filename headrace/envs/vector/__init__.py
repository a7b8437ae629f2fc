"""Vector environments as columns of a batch."""
