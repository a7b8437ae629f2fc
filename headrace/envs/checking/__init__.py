"""What `check_env` tries."""
