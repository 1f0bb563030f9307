"""The studies there are, free of imports so that the command line can list them at once."""

STUDIES = {
    "stability": "which methods let training survive larger learning rates (arXiv 2410.16682)",
}
"""Name -> what it asks; the file of the same name answers."""
