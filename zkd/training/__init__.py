"""Rounds of training: the processes that compute them, the links between nodes, and the coordinator of a job."""
