"""Private servers, worker processes and waiting, for the tests."""
