"""Engines do the work of a sampler: in this process, in workers, or ahead of the learner."""
