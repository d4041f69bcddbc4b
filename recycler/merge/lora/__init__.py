"""Merges of LoRA adapters (Prabhakar et al. 2024, arXiv:2410.13025)."""
