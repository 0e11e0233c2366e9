"""What people and programs see of the allocator: adapters that decide nothing."""
