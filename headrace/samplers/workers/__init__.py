"""What runs in each kind of process."""
