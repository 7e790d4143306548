"""Writes Prometheus' alert rules and Grafana's dashboard from the definitions of the service's metrics."""
