"""Vector environments as rows of a batch."""
