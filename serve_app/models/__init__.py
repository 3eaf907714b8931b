"""From a checkpoint to a prepared model: readers, decoder graph, tokenizer files, store."""
