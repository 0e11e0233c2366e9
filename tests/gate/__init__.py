"""The quality gate and the circuit breaker's decisions."""
