"""Parts on their own: no broker, no worker."""
