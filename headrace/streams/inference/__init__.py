"""Inference streams: agents ask, a policy in this or another process answers whole batches."""
