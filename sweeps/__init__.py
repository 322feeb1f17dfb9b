"""Hyper-parameter sweeps with Optuna: search spaces, studies, workers, and promoting the best trial."""
