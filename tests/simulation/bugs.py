"""Planted bugs"""

BUGS = {}
