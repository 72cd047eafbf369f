"""What a node knows of the tasks in its hands: their state, what they need to run, and what an outcome means.

    held      one task in our hands, and what this node has done so far
    inputs    what a kernel is called with, and of datasets: provision
    verdicts  what is published for an outcome

Plain values and functions; `zkd.node.executor` acts by them.
"""
