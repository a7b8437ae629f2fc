"""The agent's side of a batch: computes actions for rows and records them."""
