"""Logs, metrics, health and the service manager."""
