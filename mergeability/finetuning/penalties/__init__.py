"""Differentiable penalties on fine-tuning: one file each."""
