"""What digits.py is made of: child processes, a client, an optimiser, an oracle, a picture."""
