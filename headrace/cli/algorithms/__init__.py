"""The algorithms of `headrace train`: settings, agents and defaults, one module per algorithm."""
