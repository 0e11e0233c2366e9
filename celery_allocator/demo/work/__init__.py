"""The real work of the demo: three kernels that know nothing of Celery or of the allocator.

Each file is also in ``examples/``, word for word, because an example must survive being copied out of the repository
while the wheel ships only this package; a test holds the two equal.
"""
