"""Latency and accuracy of every file of a bundle, side by side."""
