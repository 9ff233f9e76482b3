"""Datasets: what the rows mean, where they are kept, and how they become matrices."""
