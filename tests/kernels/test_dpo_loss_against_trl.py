"""TRL's own code on the same log-probs: DPOTrainer's loss and CPOTrainer's, with stand-ins for the
model and for what a trainer has that the loss does not need.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import dpo_loss, dpo_loss_tokens

# TRL and transformers warn about each other's argument names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

NUM_PAIRS, PROMPT, WIDTH = 5, 2, 9
UNLIKE = torch.tensor([3, 1, 7, 4, 2, 5, 6, 1, 2, 3])  # response tokens: chosen, then rejected
ALIKE = torch.tensor([4, 4, 4, 4, 4, 5, 6, 1, 2, 3])


def batch(lengths):
    """(log-probs [2P, W - 1], 0 outside responses, as TRL's model gives them; mask [2P, W];
    reference sums [2P])."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(WIDTH)
    mask = ((place >= PROMPT) & (place < PROMPT + lengths[:, None])).long()
    values = -torch.randn(len(lengths), WIDTH, generator=generator, dtype=torch.float64).exp()
    logps = (values * mask)[:, 1:]
    ref = logps.sum(1) + 3 * torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return logps, mask, ref


def trl_dpo(logps, mask, ref, losses, weights, beta, label_smoothing):
    """(loss, gradient of logps, metrics) of DPOTrainer."""
    from trl.trainer.dpo_trainer import DPOTrainer

    leaf = logps.clone().requires_grad_()
    unused = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        log_probs=leaf, entropy=unused, mean_logits=unused, is_top1=unused.bool()
    )
    model = lambda **inputs: outputs  # noqa: E731
    alone = lambda value: value  # noqa: E731
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=alone, gather_for_metrics=alone),
        args=SimpleNamespace(),
        beta=beta,
        loss_types=losses,
        loss_weights=weights,
        label_smoothing=label_smoothing,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = ref.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
    return loss.detach(), leaf.grad, metrics


def packed(logps, mask):
    """(tokens [T], boundaries): TRL's rows without their padding."""
    inside = mask[:, 1:].bool()
    return logps[inside], torch.cat((torch.zeros(1, dtype=torch.int64), inside.sum(1).cumsum(0)))


PAIRS = torch.stack((torch.arange(NUM_PAIRS), torch.arange(NUM_PAIRS) + NUM_PAIRS), 1)

SETTINGS = {
    # TRL's losses and their weights: our options
    "sigmoid": (["sigmoid"], [1.0], UNLIKE, {}),
    "hinge": (["hinge"], [1.0], UNLIKE, {"loss": "hinge"}),
    "ipo": (["ipo"], [1.0], UNLIKE, {"loss": "ipo", "length_normalized": True}),
    "robust": (["robust"], [1.0], UNLIKE, {"loss": "robust", "label_smoothing": 0.2}),
    "sigmoid_norm": (["sigmoid_norm"], [1.0], UNLIKE, {"length_normalized": True}),
    # TRL's is the mean over all chosen tokens, ours over pairs: the same where all are as long.
    "sigmoid and sft": (["sigmoid", "sft"], [1.0, 0.7], ALIKE, {"nll_weight": 0.7}),
    "sft of one": (["hinge", "sft"], [1.0, 0.7], UNLIKE, {"loss": "hinge", "nll_weight": 0.7}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_dpo_trainer(name):
    losses, weights, lengths, options = SETTINGS[name]
    logps, mask, ref = batch(lengths)
    if name == "sft of one":
        logps, mask, ref = (x[[2, 2 + NUM_PAIRS]] for x in (logps, mask, ref))
    pairs = torch.tensor([[0, 1]]) if len(ref) == 2 else PAIRS
    smoothing = options.get("label_smoothing", 0.0)
    wanted, wanted_grad, metrics = trl_dpo(logps, mask, ref, losses, weights, 0.3, smoothing)

    tokens, boundaries = packed(logps, mask)
    tokens.requires_grad_()
    out = dpo_loss_tokens(tokens, boundaries, pairs, ref, beta=0.3, **options)
    out.loss.backward()
    assert_close(out.loss.detach(), wanted, rtol=1e-12, atol=0.0)
    assert_close(tokens.grad, wanted_grad[mask[:, 1:].bool()], rtol=1e-11, atol=1e-15)
    for ours, theirs in (
        (out.rewards[0], "rewards/chosen"),
        (out.rewards[1], "rewards/rejected"),
        (out.margins, "rewards/margins"),
        (out.accuracy, "rewards/accuracies"),
        (out.sums[pairs[:, 0]], "logps/chosen"),
        (out.sums[pairs[:, 1]], "logps/rejected"),
    ):
        assert float(ours.mean()) == pytest.approx(metrics[theirs], rel=1e-7)


def trl_cpo(loss, chosen, rejected, beta, gamma=0.0, label_smoothing=0.0):
    """(losses, rewards of chosen, of rejected) of CPOTrainer."""
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        beta=beta,
        loss_type=loss,
        simpo_gamma=gamma,
        label_smoothing=label_smoothing,
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)


def test_simpo_of_cpo_trainer():
    """From logits: the mean over a response's tokens is TRL's own too."""
    from trl.experimental.cpo import CPOTrainer

    _, mask, _ = batch(UNLIKE)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2 * NUM_PAIRS, WIDTH, 11, generator=generator, dtype=torch.float64)
    ids = torch.randint(11, (2 * NUM_PAIRS, WIDTH), generator=generator)
    labels = ids.masked_fill(mask == 0, -100)
    means = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    losses, chosen, rejected = trl_cpo("simpo", *means.chunk(2), beta=2.0, gamma=0.6)

    token_logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    tokens, boundaries = packed(token_logps, mask)
    out = dpo_loss_tokens(tokens, boundaries, PAIRS, None, "simpo", 2.0, gamma=0.6)
    assert_close(out.losses, losses, rtol=1e-12, atol=0.0)
    assert_close(out.rewards[0], chosen, rtol=1e-12, atol=0.0)
    assert_close(out.rewards[1], rejected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_label_smoothing_of_cpo_trainer(gamma):
    """TRL smooths with f(-m) around its own margin, ours with the pair turned around: the same
    where there is no margin. With one, the swapped term asks for it of the other side.
    """
    logps, mask, _ = batch(UNLIKE)
    tokens, boundaries = packed(logps, mask)
    means = dpo_loss_tokens(tokens, boundaries, PAIRS, None, "simpo", 1.0).rewards
    losses, *_ = trl_cpo("simpo", *means, beta=2.0, gamma=gamma, label_smoothing=0.1)
    ours = dpo_loss_tokens(
        tokens, boundaries, PAIRS, None, "simpo", 2.0, gamma=gamma, label_smoothing=0.1
    ).losses
    if gamma == 0:
        assert_close(ours, losses, rtol=1e-12, atol=0.0)
    turned, *_ = trl_cpo("simpo", *reversed(means), beta=2.0, gamma=gamma)
    straight, *_ = trl_cpo("simpo", *means, beta=2.0, gamma=gamma)
    assert_close(ours, 0.9 * straight + 0.1 * turned, rtol=1e-12, atol=0.0)


def test_conservative_dpo_of_cpo_trainer():
    """The sigmoid loss with smoothed labels; the log-ratios stand for what CPO leaves alone."""
    logps, _, ref = batch(UNLIKE)
    sums = logps.sum(1)
    losses, *_ = trl_cpo("sigmoid", *(sums - ref).chunk(2), beta=0.3, label_smoothing=0.1)
    out = dpo_loss(sums.chunk(2), ref.chunk(2), beta=0.3, label_smoothing=0.1)
    assert_close(out.losses, losses, rtol=1e-12, atol=0.0)
