"""Metrics, baselines and reports that judge synthetic tables."""
