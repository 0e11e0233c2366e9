"""The documentation is run: every snippet, against private servers and real workers."""
