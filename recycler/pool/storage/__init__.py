"""Bytes of checkpoints: locations, buckets, hub, packs, headers, tensors, writers."""
