"""Penalties on fine-tuning, one file each; `objective.Penalty` says what a penalty is."""
