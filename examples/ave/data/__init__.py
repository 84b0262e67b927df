"""Datasets, their files, and batches of videos."""
