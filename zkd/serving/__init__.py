"""Requests for predictions: what waits for which model, the processes that answer, and what they find out."""
