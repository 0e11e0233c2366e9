"""The real work of the demo: three kernels that know nothing of Celery or of the allocator.

Each file is a link into ``examples/``: an example must survive being copied out of the repository, while the wheel
ships only this package (with the files' content).
"""
