"""The tests of celery-allocator."""
