"""End-to-end suites: real brokers, real workers."""
