"""Ends every process that is forked after this was imported."""

import os

os.register_at_fork(after_in_child=lambda: os._exit(7))
