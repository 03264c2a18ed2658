"""`bench search`: Optuna over validation scores of inner folds, which hold no test patients."""
