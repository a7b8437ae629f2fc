"""Services of a distributed run: who is where, and which parameters are the latest."""
