"""The fault matrix: every feature through every fault under every kind of worker.

``python -m tests.matrix`` runs all of it and writes ``docs/fault-matrix.md``. ``faults`` makes the
faults, ``features`` is the load and what has to hold of it, ``site`` is what serves it, ``run`` is
one run, and ``soak`` lets random faults follow one another for long.
"""
