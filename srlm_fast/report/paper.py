"""What the paper's judge reached against people's ranking (arXiv 2401.10020, table 4)."""

JUDGE = {
    "SFT baseline": {
        "pairwise_accuracy": 0.651,
        "five_best": 0.396,
        "exact_match": 0.101,
        "spearman": 0.253,
        "kendall": 0.233,
    },
    "M1": {
        "pairwise_accuracy": 0.787,
        "five_best": 0.415,
        "exact_match": 0.131,
        "spearman": 0.279,
        "kendall": 0.253,
    },
    "M2": {
        "pairwise_accuracy": 0.804,
        "five_best": 0.443,
        "exact_match": 0.143,
        "spearman": 0.331,
        "kendall": 0.315,
    },
    "M3": {
        "pairwise_accuracy": 0.817,
        "five_best": 0.432,
        "exact_match": 0.143,
        "spearman": 0.349,
        "kendall": 0.324,
    },
}
