"""Tests on a real NVIDIA GPU, skipped on machines without one; ``facts`` writes down what is so on the one here."""
