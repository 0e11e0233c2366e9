"""Who may do what, and over which wires: few rights, TLS, Sentinel, Redis Cluster. Real servers throughout."""
