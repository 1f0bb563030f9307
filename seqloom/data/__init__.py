"""What goes in: corpora, tokenizers, token shards, mixtures, packed rows."""
