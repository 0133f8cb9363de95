"""Reproduces the paper's tables: published figures, model costs, scores of finished runs."""
