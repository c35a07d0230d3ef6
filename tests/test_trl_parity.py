"""Loss, gradients and advantages equal those of TRL's own GRPOTrainer on a tiny random Llama."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pairuni_nb.pair_grpo import group_advantage, policy_loss

K, LONGEST = 4, 8
REWARDS = {
    "w0 w1 w2": [1.0, 0.0, 0.0, 1.0],
    "w3": [0.5, None, 0.25, 0.0],
    "w4 w5": [0.3] * K,
    "w6 w7 w8 w9": [None, None, None, 1.0],
}
LOSS_TYPES = ("grpo", "dr_grpo", "dapo")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a random two-layer Llama, and its twelve-word tokenizer."""
    torch.manual_seed(0)
    vocabulary = ["<pad>", "<eos>", *(f"w{i}" for i in range(10))]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}))
    words.pre_tokenizer = WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    special = dict(pad_token="<pad>", eos_token="<eos>", padding_side="left")
    return folder, PreTrainedTokenizerFast(tokenizer_object=words, **special)


def hand_made(prompts, **kwargs):
    """A reward for each rollout: mixed, with a failure, flat, and one alone in its group."""
    return [REWARDS[prompt][i % K] for i, prompt in enumerate(prompts)]


def rolled_out(trl, tiny, folder, accumulation=1, longest=LONGEST, **settings):
    """TRL's trainer after its rollout phase, its policy moved since then, and its micro-batches."""
    model, tokenizer = tiny
    args = trl.GRPOConfig(
        str(folder),
        num_generations=K,
        max_completion_length=longest,
        epsilon=0.2,
        num_iterations=2,
        per_device_train_batch_size=K * len(REWARDS) // accumulation,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        bf16=False,
        seed=0,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
        **settings,
    )
    trainer = trl.GRPOTrainer(
        str(model),
        hand_made,
        args,
        Dataset.from_dict({"prompt": list(REWARDS)}),
        processing_class=tokenizer,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = accumulation  # Trainer.train sets it in its loop
    rows = next(iter(trainer.get_train_dataloader()))
    batches = []
    for trainer._step in range(accumulation):
        batches.append(trainer._prepare_inputs(rows))
    with torch.no_grad():
        torch.manual_seed(3)
        for weight in trainer.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return trainer, batches


def plain_logp(model, batch):
    """Log-probs of the completions by a plain forward and a log-softmax."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logp = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    return logp.gather(-1, ids[:, 1:, None])[:, -batch["completion_ids"].shape[1] :, 0]


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


def ours(tiny, trainer, batches, normalizers, **kwargs):
    """Loss and gradients of the same weights in an unpatched Llama, by `policy_loss`."""
    model = LlamaForCausalLM.from_pretrained(tiny[0], dtype=torch.float32)
    reference = LlamaForCausalLM.from_pretrained(tiny[0], dtype=torch.float32)
    model.load_state_dict(trainer.model.state_dict())
    total, stats = 0.0, []
    for batch, normalizer in zip(batches, normalizers):
        logp, ref_logp = plain_logp(model, batch), plain_logp(reference, batch)
        loss, stat = policy_loss(
            logp,
            batch["old_per_token_logps"],
            batch["advantages"],
            batch["completion_mask"].bool(),
            ref_logp=ref_logp,
            normalizer=normalizer,
            **kwargs,
        )
        loss.backward()
        total = total + loss.detach()
        stats.append(stat)
    return total, gradients(model), stats


def theirs(trainer, batches):
    """Loss and gradients by `GRPOTrainer._compute_loss`."""
    losses = [trainer._compute_loss(trainer.model, batch) for batch in batches]
    sum(losses).backward()
    return sum(losses).detach(), gradients(trainer.model)


def assert_same(mine, other):
    assert torch.isfinite(other[0])
    assert max(g.abs().max() for g in other[1].values()) > 1e-3
    torch.testing.assert_close(mine[0], other[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mine[1], other[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(need, tiny, tmp_path, loss_type, beta):
    trainer, [batch] = rolled_out(need("trl"), tiny, tmp_path, loss_type=loss_type, beta=beta)
    lengths = batch["completion_mask"].sum(-1)
    assert lengths.min() < lengths.max() == batch["completion_mask"].shape[1] == LONGEST
    mine = ours(tiny, trainer, [batch], [None], loss_type=loss_type, beta=beta)
    assert_same(mine, theirs(trainer, [batch]))
    [stats], logged = mine[2], trainer._metrics["train"]
    assert stats["clip_low"] > 0
    assert stats["clip_high"] > 0
    assert stats["ratio_max"] > 1.2
    names = {"clip_low": "clip_ratio/low_mean", "clip_high": "clip_ratio/high_mean"}
    if beta > 0:
        names["kl"] = "kl"
    for name, key in names.items():
        assert float(stats[name]) == pytest.approx(logged[key][0], rel=1e-4)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_accumulation(need, tiny, tmp_path, loss_type):
    trainer, batches = rolled_out(need("trl"), tiny, tmp_path, accumulation=2, loss_type=loss_type)
    masks = [batch["completion_mask"] for batch in batches]
    assert len(masks) == 2
    assert masks[0].sum() != masks[1].sum()
    rows, tokens = sum(map(len, masks)), int(sum(mask.sum() for mask in masks))
    normalizers = {"grpo": [rows] * 2, "dapo": [tokens] * 2, "dr_grpo": [rows * LONGEST] * 2}
    mine = ours(tiny, trainer, batches, normalizers[loss_type], loss_type=loss_type)
    assert_same(mine, theirs(trainer, batches))


def test_dr_grpo_of_answers_that_all_end_early(need, tiny, tmp_path):
    """TRL divides by the slots that an answer may have, `policy_loss` by those of the longest."""
    settings = dict(loss_type="dr_grpo", longest=60)
    trainer, [batch] = rolled_out(need("trl"), tiny, tmp_path, **settings)
    rows, drawn = batch["completion_mask"].shape
    assert drawn < 60
    mine = ours(tiny, trainer, [batch], [rows * 60], loss_type="dr_grpo")
    assert_same(mine, theirs(trainer, [batch]))
    own = ours(tiny, trainer, [batch], [None], loss_type="dr_grpo")
    torch.testing.assert_close(own[0], mine[0] * 60 / drawn)


def test_advantages(need, tiny, tmp_path):
    trainer, [batch] = rolled_out(need("trl"), tiny, tmp_path)
    rewards = torch.tensor(list(trainer._logs["rewards"]["hand_made"])).view(-1, K)
    advantages = torch.tensor(list(trainer._logs["advantages"])).view(-1, K)
    assert rewards.isnan().sum() == 4
    assert sorted(advantages.flatten().tolist()) == sorted(batch["advantages"].tolist())
    torch.testing.assert_close(group_advantage(rewards), advantages, rtol=1e-5, atol=1e-6)
