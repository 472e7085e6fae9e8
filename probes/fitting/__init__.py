"""Fitting layer mixtures and ridges: numpy and scipy only, deterministic, float64."""
