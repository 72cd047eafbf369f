"""Rows of datasets as numpy arrays: where they come from, which part each belongs to, and how they come together.

    ingest     arrays, iterators, CSV, .npy, .npz, Parquet and Arrow files -> batches, which are dicts of arrays
    columns    what a column may be                     hashing    the hash of a whole column of keys
    partition  batches -> rows by part, also more of them than memory holds
    assemble   the rows of parts -> one table, in the order in which they were written
    export     a table -> a file                            keys       one key, as somebody says it

Programs that give data and workers that compute on them import this; a daemon's own process never does.
"""
