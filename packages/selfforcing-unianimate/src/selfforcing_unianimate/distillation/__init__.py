"""Distillation: what a causal student learns from data, from a teacher's paths and from scores of its own videos."""
