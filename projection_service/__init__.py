"""Folds consent events into the read model and answers queries from it."""
