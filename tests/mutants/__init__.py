"""Deliberately broken lines of the package, each of which a test must notice: `python -m tests.mutants`."""
