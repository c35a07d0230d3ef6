"""Two processes under DeepSpeed do what one does, at each ZeRO stage, where deepspeed is installed; what cannot be is refused in a sentence."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from pairuni_nb import processes as T
from pairuni_nb.processes import join_processes, launch, zero_config
from pairuni_nb.run_folder import load_state
from two_processes import HERE, RUN, SMALL, by_one, by_two, same_run

PLAIN = ["--config_file", HERE.parent / "configs" / "deepspeed.yaml"]
STAGE3 = dict(
    zero_optimization=dict(
        stage=3,
        stage3_param_persistence_threshold=0,  # janus-nano's layers are so small that they would stay whole
        memory_efficient_linear=False,
    ),  # DeepSpeed's own linear layer rounds bfloat16 once more, before it adds the bias
    gradient_clipping=7,
    train_micro_batch_size_per_gpu=3,
    train_batch_size=96,
    gradient_accumulation_steps=16,
)  # the run's settings count, not these


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "The run of one process."
    pytest.importorskip("deepspeed")
    tmp = tmp_path_factory.mktemp("zero")
    by_one(tmp, replace(RUN, agreement_every=0))  # DeepSpeed has no gradients to compare
    return tmp


@pytest.fixture(scope="module", params=[1, 2, 3])
def folder(request, one, tmp_path_factory):
    "What two processes left, at one stage."
    tmp = tmp_path_factory.mktemp(f"zero{request.param}")
    (tmp / "pairs").symlink_to(one / "pairs")
    (tmp / "zero3.json").write_text(json.dumps(STAGE3))
    by_two(
        tmp,
        ["--use_deepspeed", "--num_machines", "1", "--deepspeed_config_file", tmp / "zero3.json"]
        if request.param == 3
        else [*PLAIN, "--zero_stage", request.param],
    )
    return tmp


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_processes_make_the_update_of_one(folder, precision):
    said = json.loads((folder / "said.json").read_text())[f"zero {precision}"]
    rounding = (
        (0.01 * said["moved"], 1e-3)
        if precision == "bf16" and folder.name.startswith("zero3")
        else (1e-6, 1e-5)
    )  # stage 3 adds bfloat16 gradients in another order
    assert said["moved"] > 1e-3 and said["apart"] < rounding[0] and said["stats"] < rounding[1]


def test_a_policy_goes_back_to_its_state(folder):
    assert json.loads((folder / "said.json").read_text())["resumed"] == dict(zero=0)
    place = folder / "zero"
    assert (place / "state.pt").exists()
    assert [p.name for p in (place / "state").iterdir()] == ["1"]  # the last one alone


def test_a_run_is_the_run_of_one(folder, one):
    same_run(one / "one", folder / "run")
    alone, two = ({p.name for p in run.iterdir()} for run in (one / "one", folder / "run"))
    assert two == alone - {"best.pt"} | {"pairs", "report.html"}  # DeepSpeed keeps its parts


def config(**more):
    return dict(zero_optimization=dict(stage=2), bf16=dict(enabled=False)) | more


def test_the_settings_of_the_run_count():
    assert zero_config(
        config(gradient_clipping=7), replace(SMALL, micro_batch=5, max_grad_norm=0.3)
    ) == dict(
        train_batch_size="auto",
        train_micro_batch_size_per_gpu=5,
        gradient_accumulation_steps=1,
        gradient_clipping=0.3,
    )


@pytest.mark.parametrize(
    "said,given,changed",
    [
        ("sets bf16: delete it there", config(bf16=dict(enabled=True)), {}),
        ("sets fp16: delete it there", config(fp16=dict(enabled=True)), {}),
        ("sets amp: delete it there", config(amp=dict(enabled=True)), {}),
        ("sets torch_autocast: delete it there", config(torch_autocast=dict(enabled=True)), {}),
        (
            "sets optimizer and scheduler: delete",
            config(optimizer=dict(type="Adam"), scheduler=dict(type="WarmupLR")),
            {},
        ),
        (
            "sets offload_optimizer, which loses",
            config(zero_optimization=dict(stage=2, offload_optimizer=dict(device="cpu"))),
            {},
        ),
        (
            "sets offload_optimizer, which loses",
            config(zero_optimization=dict(stage=3, offload_optimizer=dict(device="nvme"))),
            {},
        ),
        (
            "sets overlap_comm, which loses",
            config(zero_optimization=dict(stage=1, overlap_comm=True)),
            {},
        ),
        ("splits nothing at ZeRO stage 0: choose", config(zero_optimization=dict(stage=0)), {}),
        ("splits nothing at ZeRO stage 0: choose", config(zero_optimization={}), {}),
        ("add --no-shard", config(), dict(shard=True)),
        ("set lora_rank to 0", config(), dict(lora_rank=4)),
        ("combine balance needs each .* set combine to sum", config(), dict(combine="balance")),
        ("combine alternate needs each", config(), dict(combine="alternate")),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(said, given, changed):
    with pytest.raises(ValueError, match=said) as e:
        zero_config(given, replace(SMALL, **changed))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "zero",
    [
        dict(stage=1, overlap_comm=False),
        dict(stage=2, overlap_comm=True),
        dict(stage=3, overlap_comm=True, offload_optimizer=None),
        dict(stage=2, offload_optimizer=dict(device="none")),
    ],
)
def test_what_loses_no_gradient_is_left_alone(zero):
    given = config(zero_optimization=zero, amp=dict(enabled=False))
    assert zero_config(given, SMALL)["gradient_accumulation_steps"] == 1


def test_accelerate_reads_the_runs_settings_where_it_left_its_own(monkeypatch, tmp_path):
    "It keeps one dict under two names; a new dict under one of them is half a config."
    kind, own = DistributedType.DEEPSPEED, config(train_micro_batch_size_per_gpu="auto")
    plugin = SimpleNamespace(deepspeed_config=own, hf_ds_config=SimpleNamespace(config=own))
    made = SimpleNamespace(distributed_type=kind, deepspeed_plugin=plugin, num_processes=2)
    monkeypatch.setattr(T, "join_processes", lambda device: made)
    monkeypatch.setattr(T, "Accelerator", lambda **_: made)
    launch(replace(SMALL, micro_batch=5), tmp_path, "auto", None)
    for told in (plugin.deepspeed_config, plugin.hf_ds_config.config):
        assert told["train_micro_batch_size_per_gpu"] == 5


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.MEGATRON_LM])
def test_launchers_that_split_weights_their_own_way_are_refused(kind, monkeypatch, tmp_path):
    made = SimpleNamespace(distributed_type=kind, num_processes=2)
    monkeypatch.setattr(T, "join_processes", lambda device: made)
    monkeypatch.setattr(T, "Accelerator", lambda **_: made)
    with pytest.raises(ValueError, match=f"asks for {kind.value}: start .* --multi_gpu"):
        launch(SMALL, tmp_path, "auto", None)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")


def test_a_missing_deepspeed_is_one_sentence(asked, monkeypatch):
    monkeypatch.setattr(T, "is_deepspeed_available", lambda: False)
    with pytest.raises(ValueError, match="not installed: pip install deepspeed"):
        join_processes("cpu")


def test_deepspeed_leaves_no_gpu_for_the_cpu(asked, monkeypatch):
    monkeypatch.setattr(T, "is_deepspeed_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="leave --device cpu out"):
        join_processes("cpu")


@pytest.mark.parametrize(
    "saved,said",
    [
        (dict(step=1), "with DeepSpeed: resume it so"),
        (dict(step=1, model={}, opt={}), "without DeepSpeed: resume it so"),
    ],
)
def test_a_state_of_the_other_kind_is_refused(saved, said, tmp_path):
    class Engine:
        def load_checkpoint(self, *a, **k):
            raise AssertionError

    torch.save(saved, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=said):
        load_state(tmp_path, Engine() if "model" in saved else torch.nn.Linear(1, 1), None)
