"""Compiled twins of inner loops, used where they are built; `headrace.compiled` chooses."""
