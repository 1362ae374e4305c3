"""ART's `PyTorchClassifier`: build, copy, check, read, store."""
