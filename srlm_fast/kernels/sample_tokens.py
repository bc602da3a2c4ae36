def sample_tokens(*a, **k): raise NotImplementedError
