"""Training after removal: fine-tuning with distillation from the dense model."""
