"""Checkpoints: what a run saves in order to be resumed."""
