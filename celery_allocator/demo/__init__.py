"""``celery-allocator demo``: real tasks on real files, on a server, GPUs and workers of its own, watched live."""
