"""Room 1: snapshots as files, and databases made from them.

``names`` and ``manifest`` are pure values, ``lock``, ``files``, ``store``,
``latest`` and ``sweep`` keep the directory whole, ``disk`` looks before
writing, ``hashing`` reads. Everything that talks to a database stands on them.
"""
