"""The studies there are, free of imports so that the command line can list them at once."""

STUDIES = {
    "stability": "which methods let training survive larger learning rates (arXiv 2410.16682)",
    "hybrid": "a hybrid beside a Transformer and an attention-free model of its size (arXiv 2504.03624)",
    "latent_moe": "LatentMoE beside MoE at equal cost, with and without multi-token prediction (arXiv 2601.18089)",
    "fp8": "FP8 training recipes beside BF16, branched from one checkpoint (arXiv 2504.03624)",
    "nvfp4": "NVFP4 training, its ingredients and its late switch, beside BF16 and FP8 (arXiv 2509.25149)",
    "mor": "which share of tensors can be FP8 when each is asked, and what that costs (arXiv 2512.22804)",
    "speech_norm": "batch normalization by depth of a recogniser (arXiv 1512.02595)",
    "speech_sorta_grad": "short utterances first (arXiv 1512.02595)",
    "speech_conv": "1D and 2D convolutions under noise (arXiv 1512.02595)",
    "speech_bigrams": "letters and bigrams at long strides (arXiv 1512.02595)",
    "speech_row_conv": "a row convolution beside one and two directions (arXiv 1512.02595)",
    "speech_decoding": "what a language model saves, and pruning (arXiv 1512.02595)",
    "speech_filter": "finding wrong transcripts by CTC cost (arXiv 1512.02595)",
    "batch_dispatch": "latency in batches and one by one (arXiv 1512.02595)",
    "speech_speed": "training and CTC beside the plain way (arXiv 1512.02595)",
    "attention": "agents that see only what they attend to, and what attention causes (arXiv 1906.02500)",
    "balancing": "expert load with and without auxiliary-loss-free balancing (arXiv 2408.15664)",
    "inference": "time, memory and rows that a hybrid saves beside a Transformer of its size (arXiv 2504.03624)",
    "mtp": "guessing with the prediction block: what is accepted and what it gains (arXiv 2512.20856)",
    "ssm_cache": "Mamba states in fewer bits, with and without stochastic rounding (arXiv 2512.20856)",
}
"""Name -> what it asks; the file of the same name answers."""
