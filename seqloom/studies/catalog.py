"""The studies there are, free of imports so that the command line can list them at once."""

STUDIES = {
    "stability": "which methods let training survive larger learning rates (arXiv 2410.16682)",
    "hybrid": "a hybrid beside a Transformer and an attention-free model of its size (arXiv 2504.03624)",
    "latent_moe": "LatentMoE beside MoE at equal cost, with and without multi-token prediction (arXiv 2601.18089)",
    "balancing": "expert load with and without auxiliary-loss-free balancing (arXiv 2408.15664)",
}
"""Name -> what it asks; the file of the same name answers."""
