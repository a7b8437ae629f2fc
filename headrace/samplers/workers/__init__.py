"""The code that runs in each kind of process."""
