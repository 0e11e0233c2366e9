"""What is so on this machine's GPU: ``python -m tests.device.facts FILE`` asks, and writes the answers as JSON.

Not tests: nothing here is right or wrong. Each section runs in a process of its own, so that what goes wrong in one, or
hangs, costs the others nothing. ``docs/internals/gpus.md`` tells what was found.
"""
