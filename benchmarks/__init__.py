"""Measurements beside peers, older commits and the machine's own limits: `python -m benchmarks AREA`.

An area is a file of this folder that has

    cases(options) -> list[Case]      what it can measure (see case.py); nothing is built before a case's turn
    add_options(parser)               options of its own, if it needs any

and whose first docstring line says what it measures. The command picks cases, sets threads and seed, adds where it was
measured, and prints one JSON line for each. docs/benchmarks.md says what the numbers mean.
"""
