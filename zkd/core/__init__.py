"""Decides. Nothing here knows asyncio, a clock, randomness or I/O: time comes in as an argument, what to do
goes out as values, so the same inputs give the same outputs, in production and in a simulation."""
