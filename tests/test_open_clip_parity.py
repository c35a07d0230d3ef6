"""HPSv2's conversion against open_clip itself. Skipped everywhere open_clip does not import: it needs torchvision, which this project does without.

To run it: pip install open-clip-torch torchvision, in an environment of its own.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from pairuni_nb.preference import clip_reward, convert_hps, tiny_clip, tiny_tokenizer
from pairuni_nb.world import records

open_clip = pytest.importorskip(
    "open_clip",
    reason="optional: compares with open_clip, which is no requirement",
    exc_type=ImportError,
)
SMALL = dict(
    embed_dim=48,
    vision_cfg=dict(image_size=56, layers=2, width=160, head_width=80, patch_size=14),
    text_cfg=dict(context_length=32, width=128, heads=2, layers=2),
)


def test_vit_h_14_is_what_the_conversion_takes_for_granted():
    c = open_clip.get_model_config("ViT-H-14")
    assert (
        c["vision_cfg"]["head_width"] == 80
        and c["text_cfg"]["width"] // c["text_cfg"]["heads"] == 64
        and not c.get("quick_gelu")
    )


def compare(folder, config, tok, n):
    "Scores of n drawings by open_clip and by the converted folder, open_clip preparing its own pixels."
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    for p in model.parameters():
        p += 0.02 * torch.randn_like(p)
    torch.save(dict(state_dict=model.state_dict()), folder / "HPS.pt")
    tok.save_pretrained(folder / "tok")
    rows, side = records("g", n, 3), config["vision_cfg"]["image_size"]
    prompts, images = (
        [r["prompt"] for r in rows],
        np.stack([np.asarray(r["image"].resize((side, side))) for r in rows]),
    )
    ids = tok(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=config["text_cfg"]["context_length"],
        return_tensors="pt",
    )
    prepare = open_clip.image_transform(side, is_train=False, resize_mode="longest", fill_color=0)
    x, t, _ = model(
        torch.stack([prepare(Image.fromarray(i)) for i in images]),
        ids.input_ids * ids.attention_mask,
    )
    ours = clip_reward(convert_hps(folder / "HPS.pt", folder / "hps", folder / "tok"))(
        prompts, images, rows
    )
    assert np.allclose(ours, (x * t).sum(1), atol=1e-5) and np.std(ours) > 1e-4


def test_converted_weights_score_as_open_clip_does(tmp_path):
    tok = AutoTokenizer.from_pretrained(tiny_clip(tmp_path / "clip"))
    compare(tmp_path, SMALL | dict(text_cfg=SMALL["text_cfg"] | dict(vocab_size=len(tok))), tok, 8)


@pytest.mark.slow
def test_so_does_the_true_shape(tmp_path):
    tok, config = (
        tiny_tokenizer([r["prompt"] for r in records("g", 50, 0)]),
        open_clip.get_model_config("ViT-H-14"),
    )
    compare(
        tmp_path,
        dict(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=config["text_cfg"] | dict(vocab_size=len(tok)),
        ),
        tok,
        2,
    )
