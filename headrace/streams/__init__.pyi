"""Streams between processes and machines: samples to a learner, observations to a policy, actions back."""
