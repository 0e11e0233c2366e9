"""The exporter and what is shipped with it: alerts, dashboard, Prometheus configuration."""
