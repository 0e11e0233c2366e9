"""Faults on purpose, under load, with real processes; judged from what the tasks themselves wrote."""
