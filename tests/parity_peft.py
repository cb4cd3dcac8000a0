"""Live parity with PEFT: adapters of theirs here, adapters of ours there, and a short training of both.

Run it with `make parity`. It needs torch, transformers 5 and peft besides our own packages.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from configs.load import load_config
from configs.schema import RunConfig, is_adapter
from meshtf import mtf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.checkpoint.adapters import merged
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.init_from import find_adapters, find_weights, load_initial_weights, set_adapters
from runtime.checkpoint.peft import write_adapters
from runtime.checkpoint.weight_sources import StoredTensor, Weights
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.answers import our_answer
from tests.parity_families import N_CTX, RATE, batch, loaded, made, their_losses

STEPS = 20
TARGETS = {
    "GPT-2, wider": ["c_attn", "mlp.c_proj"],
    "GPT-Neo, narrower": ["q_proj", "out_proj", "c_fc"],
    "GPT-J": ["q_proj", "fc_in"],
    "Pythia": ["query_key_value", "dense", "dense_4h_to_h"],
    "Llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "Mistral": ["q_proj", "v_proj"],
    "Qwen 3": "all-linear",
    "Gemma 2": ["k_proj", "down_proj"],
}
OURS = {"Llama": "q,v,o,c_gate", "GPT-2, wider": "q,v,c_proj", "Pythia": "k,c_fc", "Qwen 2": "q,k,v,o"}


@dataclasses.dataclass(frozen=True)
class Folders:
    """A base and adapters for it, both theirs."""

    base: Path
    adapter: Path

    def config(self) -> RunConfig:
        return load_config(str(self.base), [], str(self.base), str(self.adapter))


@pytest.fixture(scope="module", params=TARGETS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    path, targets = tmp_path_factory.mktemp("theirs"), TARGETS[request.param]
    made(request.param).save_pretrained(path / "base")
    has_conv1d = request.param.startswith("GPT-2")
    torch.manual_seed(5)
    given = LoraConfig(r=4, lora_alpha=6, target_modules=targets, fan_in_fan_out=has_conv1d, task_type="CAUSAL_LM")
    model = get_peft_model(loaded(path / "base"), given)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path / "adapter")
    return Folders(path / "base", path / "adapter")


def their_logits(base: Path, adapter: Path | None, tokens: np.ndarray) -> np.ndarray:
    model = loaded(base) if adapter is None else PeftModel.from_pretrained(loaded(base), adapter).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def our_logits(config: RunConfig, base: Path, adapters: Weights, tokens: np.ndarray, device: str) -> np.ndarray:
    return our_answer(base, config.model, tokens, (device,), adapters).logits


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    print(f"largest difference up to {np.abs(expected).max():.1f}: {np.abs(actual - expected).max():.1e}")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_their_adapters_give_the_same_logits_here(folders: Folders, devices: tuple[str, ...], tmp_path: Path) -> None:
    tokens, config = batch(1), folders.config()
    base = find_weights(str(folders.base))
    adapters = find_adapters(str(folders.adapter), config.model, base)
    expected = their_logits(folders.base, folders.adapter, tokens)
    assert np.abs(expected - their_logits(folders.base, None, tokens)).max() > 0.1
    ours = our_logits(config, folders.base, adapters, tokens, devices[0])
    assert_close(ours, expected)
    weights = merged(base, adapters, config.model.lora_scale)
    write_huggingface_folder(str(tmp_path / "merged"), config, weights, None)
    assert_close(their_logits(tmp_path / "merged", None, tokens), ours, 1e-4)


@pytest.mark.parametrize("name", OURS)
def test_our_adapters_give_the_same_logits_there(name: str, devices: tuple[str, ...], tmp_path: Path) -> None:
    made(name).save_pretrained(tmp_path / "base")
    keys = ["lora_rank=3", "lora_alpha=5", f"lora_targets={OURS[name]}"]
    config, rng = load_config(str(tmp_path / "base"), keys, str(tmp_path / "base")), np.random.default_rng(2)
    adapters: dict[str, StoredTensor] = {}
    for variable, shape in _adapter_shapes(config, devices[0]).items():
        value = rng.normal(0.0, 0.3, shape).astype(np.float32)
        adapters[variable] = StoredTensor(variable, shape, lambda value=value: value)
    write_adapters(str(tmp_path / "ours"), config, adapters, str(tmp_path / "base"))
    tokens = batch(2)
    ours = our_logits(config, tmp_path / "base", adapters, tokens, devices[0])
    theirs = their_logits(tmp_path / "base", tmp_path / "ours", tokens)
    assert np.abs(theirs - their_logits(tmp_path / "base", None, tokens)).max() > 0.1
    assert_close(theirs, ours)


def _adapter_shapes(config: RunConfig, device: str) -> dict[str, tuple[int, ...]]:
    placement = place(tiny.mesh_config("", ""), (device,))

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        return [gpt2.logits(Context(tokens.mesh, config.model, Dims.of(config.model, 2, N_CTX)), tokens)]

    tiny.compiled(build, placement, ("batch sequence", batch(0)))
    return {stored.name: stored.whole_shape for stored in placement.store if is_adapter(stored.name)}


def our_losses(folders: Folders, batches: list[np.ndarray], device: str) -> list[float]:
    optimizer = {"opt_name": "adamw", "lr": RATE, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
    training = optimizer | {"gradient_clipping": None, "train_batch_size": len(batches[0])}
    model = folders.config().model
    config = tiny.run_config(model=vars(model) | {"z_loss": 0.0}, training=training)
    placement = place(config.mesh, [device])
    step = build_train_step(config, placement)
    load_initial_weights(str(folders.base), placement.store)
    set_adapters(find_adapters(str(folders.adapter), model, find_weights(str(folders.base))), placement.store, "theirs")
    weights = np.full((len(batches[0]), N_CTX), 1.0 / batches[0][:, 1:].size, np.float32)
    return [
        float(step(ids[:, :-1], ids[:, 1:], weights, np.float32(RATE), np.int32(number), np.int32(7))["loss"])
        for number, ids in enumerate(batches)
    ]


@pytest.mark.parametrize("folders", ["Llama", "Mistral"], indirect=True)
def test_training_has_the_same_losses(folders: Folders, devices: tuple[str, ...]) -> None:
    rng = np.random.default_rng(11)
    few = rng.integers(2, 64, (4, 2, N_CTX + 1), dtype=np.int32)
    batches = [few[number % len(few)] for number in range(STEPS)]
    model = PeftModel.from_pretrained(loaded(folders.base), folders.adapter, is_trainable=True)
    theirs, ours = their_losses(model, batches), our_losses(folders, batches, devices[0])
    print(f"loss {theirs[0]:.4f} to {theirs[-1]:.4f}, largest difference {np.abs(np.subtract(theirs, ours)).max():.1e}")
    assert theirs[-1] < theirs[0] - 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
