"""LoRA adapters read from PEFT folders and folded into checkpoints."""
