"""What does a sampler's work, in this process or in others."""
