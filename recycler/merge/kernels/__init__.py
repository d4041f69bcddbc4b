"""Arithmetic under the merge methods: blocks, native code, selection, random masks."""
