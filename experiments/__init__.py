"""Experiments: one module a question, run by ``python -m experiments NAME``."""
