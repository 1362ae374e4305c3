"""Adversarial perturbations: per image, universal, and reversed triggers."""
