"""Standard formats out: models, pairs, and what public evaluators read."""
