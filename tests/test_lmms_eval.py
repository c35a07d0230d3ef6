"""lmms-eval itself runs our adapter, with the question writers and judges of MMMU, MMStar, MME and POPE, on made-up items in their columns."""

import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from pairuni_nb.benchmark import lmms_manifest
from pairuni_nb.rollout import JanusPolicy

TASKS = dict(
    mme="mme/mme.yaml",
    pope="pope/pope.yaml",
    mmstar="mmstar/mmstar.yaml",
    mmmu="mmmu/mmmu_val.yaml",
)
SPLIT = dict(mme="test", pope="test", mmstar="val", mmmu="validation")


def items(name):
    """Two items of a benchmark; the right answers are yes and no, or A and B."""
    red, blue = (Image.new("RGB", (48, 48), c) for c in ("red", "blue"))
    if name == "mme":
        return [
            dict(
                question_id="0",
                image=red,
                question="Is it red? Please answer yes or no.",
                answer=a,
                category="color",
            )
            for a in ("Yes", "No")
        ]
    if name == "pope":
        return [
            dict(
                question_id=str(i),
                image=red,
                question="Is there a cup in the image?",
                answer=a,
                category="random",
            )
            for i, a in enumerate(("yes", "no"))
        ]
    if name == "mmstar":
        return [
            dict(
                index=i,
                image=red,
                question="Which?\nOptions: A: red, B: blue",
                answer=a,
                category="math",
                l2_category="geometry",
            )
            for i, a in enumerate("AB")
        ]
    mmmu = dict(
        options="['red', 'blue']",
        question_type="multiple-choice",
        image_1=red,
        image_2=blue,
        explanation="",
    )
    return [
        dict(mmmu, id=f"validation_Math_{i}", question=q, answer=a)
        for i, (q, a) in enumerate(
            [("Which is <image 1>?", "A"), ("Which is <image 1> beside <image 2>?", "B")]
        )
    ]


@pytest.fixture
def lmms_eval():
    """The package: an extra that needs torchvision by its own requirements, so a broken import is a skip, too."""
    try:
        import lmms_eval
        import lmms_eval.evaluator
    except Exception as e:
        pytest.skip(f"lmms-eval does not import here ({e!r}); its own loop is not tested")
    return lmms_eval


def test_lmms_eval_scores_our_answers(lmms_eval, tmp_path, monkeypatch):
    from pathlib import Path
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    for name, file in TASKS.items():
        DatasetDict({SPLIT[name]: Dataset.from_list(items(name))}).save_to_disk(tmp_path / name)
        config = [
            f"include: {Path(lmms_eval.__path__[0]) / 'tasks' / file}",
            f"task: toy_{name}",
            f"dataset_path: {tmp_path / name}",
            "output_type: generate_until",
            "dataset_kwargs: {load_from_disk: true}",
        ]
        (tmp_path / f"{name}.yaml").write_text("\n".join(config))
    seen = []

    def texts(self, rollouts):  # the model runs, and says yes, or A where there are letters
        asked = self.processor.tokenizer.batch_decode(rollouts.prompts.input_ids)
        seen.extend(
            (len(q) > 0, rollouts.prompts.features.shape[1] // self.image_tokens) for q in asked
        )
        return [
            f"<think>well</think><answer>{'A' if 'letter' in q else 'yes'}</answer>" for q in asked
        ]

    monkeypatch.setattr(JanusPolicy, "texts", texts)
    MODEL_REGISTRY_V2.register_manifest(lmms_manifest(), overwrite=True)
    tasks = [f"toy_{name}" for name in TASKS]
    result = lmms_eval.evaluator.simple_evaluate(
        "pairuni_janus",
        model_args="max_new_tokens=8",
        tasks=tasks,
        batch_size=3,
        device="cpu",
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    scores = {
        task: {k.split(",")[0]: v for k, v in result["results"][task].items()} for task in tasks
    }
    assert scores["toy_pope"]["pope_accuracy"] == 0.5 and scores["toy_pope"]["pope_recall"] == 1
    assert (
        scores["toy_mme"]["mme_perception_score"] == 50
        and scores["toy_mmstar"]["average"] == 0.5
        and scores["toy_mmmu"]["mmmu_acc"] == 0.5
    )
    assert sorted(n for _, n in seen) == [1] * 7 + [2]
