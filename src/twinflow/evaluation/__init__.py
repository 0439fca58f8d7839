"""Evaluation: pictures in, scores out."""
