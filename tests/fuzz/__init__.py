"""Arbitrary input at every place where it crosses a trust line: only our errors come back, and nothing changes."""
