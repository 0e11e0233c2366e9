"""The faults, a module per group; every module here is found by itself."""
