"""What computes logits: one protocol, one file per runtime."""
