"""Seeds from Open Assistant (Köpf et al. 2023, arXiv 2304.07327), as the self-rewarding paper takes
them (arXiv 2401.10020, section 3.1): answers to imitate and answers in people's order.

    files -> `messages`: one form for trees, messages and threads -> `store`, on disk, since
    messages of a tree may stand apart -> `trees`: what a tree could give -> `choice`: what is
    taken of it
"""

from srlm_fast.data.oasst.choice import OasstConfig, OasstSeeds, make_seeds

__all__ = ["OasstConfig", "OasstSeeds", "make_seeds"]
