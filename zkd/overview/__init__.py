"""What is to be seen of a cluster at one moment, read from the tree, and what changed between two moments.

    seen.py      the frozen values: an `Overview` and its parts
    tree.py      `Reader`: one look at the tree, bounded in packets and bytes, whatever the size of the cluster
    copies.py    how many copies each part of a dataset has
    changes.py   the difference of two looks, as sentences for people

The tree is the truth and a look is all there is: no stream of events that could be missed stands behind it. The
dashboard of a node, `zkd events` and `zkd top` see the same.
"""
