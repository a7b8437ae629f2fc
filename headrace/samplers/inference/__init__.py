"""The agent's side of a batch: actions for rows, and their recording."""
