"""
LoRA (peft) and quantization (torchao) of a CMRA model
======================================================

Every projection of a layer is a :class:`torch.nn.Linear` that is called as a module. So peft can add low-rank adapters,
and torchao can store the weights in 8 bits. This guide trains a small model, adapts it to another microphone, merges
the adapters, and quantizes the result. It needs ``pip install peft torchao``.
"""

# sphinx_gallery_thumbnail_path = "images/guides/lora_and_int8.svg"
import copy
import logging
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from crossmodal_attn import CMRA

# Importing torchao logs missing GPU kernels and deprecated functions.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)

import peft
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.utils import get_model_size_in_bytes

torch.manual_seed(0)

# %%
# A model to adapt
# ----------------
# In every video, eight objects are visible and audible, each once, in two different orders. Every sound is loud or
# soft. The task for each second of video: is the sound of the visible object loud? To solve it, CMRA must find the
# second in which this object is audible.

OBJECTS, WIDTH = 8, 64
looks, sounds, loud = torch.randn(OBJECTS, WIDTH), torch.randn(OBJECTS, WIDTH), torch.randn(WIDTH)


def make_batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy video and audio, and whether the sound of each visible object is loud."""
    seen, heard = torch.rand(2, size, OBJECTS).argsort(-1)
    volume = torch.randint(2, (size, OBJECTS)) * 2.0 - 1
    video, audio = looks[seen], sounds[heard] + volume[..., None] * loud
    answer = volume.gather(1, heard.argsort(-1).gather(1, seen))  # the volume in the matching second
    return video + torch.randn(video.shape), audio + torch.randn(audio.shape), (answer > 0).float()


class Matching(nn.Module):
    """Predict for each second of video whether the sound of its object is loud."""

    def __init__(self) -> None:
        super().__init__()
        self.relation = CMRA(WIDTH, num_heads=2)
        self.head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Return a logit for each second."""
        return self.head(self.relation(video, audio)).squeeze(-1)


def train(model: nn.Module, steps: int, microphone: Tensor) -> None:
    """Train the parameters that are not frozen, and print the loss and the accuracy five times."""
    optimizer = torch.optim.Adam([own for own in model.parameters() if own.requires_grad], 3e-3)
    for step in range(steps + 1):
        video, audio, answer = make_batch(64)
        logits = model(video, audio @ microphone)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (steps // 4) == 0:
            right = ((logits > 0) == answer.bool()).float().mean().item()
            print(f"step {step:3}   loss {loss.item():.3f}   accuracy {right:.0%}")


model = Matching()
train(model, 300, microphone=torch.eye(WIDTH))

# %%
# LoRA on the projections
# -----------------------
# Another microphone changes the sign of half of the audio directions, and the model fails with it. LoRA adapts only the
# attention: peft freezes the model, and learns a low-rank change of each projection in ``target_modules``. The
# projections of a CMRA are ``q_proj``, ``kv_proj`` and ``out_proj``, and also ``context_kv_proj`` if ``context_dim``
# differs from ``embed_dim``, or ``context_kv_projs.0``, ``context_kv_projs.1`` and so on if it is a list of widths.

directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH // 2)).Q
microphone = torch.eye(WIDTH) - 2 * directions @ directions.T

config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "kv_proj", "out_proj"])
adapted = peft.get_peft_model(copy.deepcopy(model), config)
adapted.print_trainable_parameters()
train(adapted, 200, microphone)

# %%
# Without the adapters, the model is unchanged.

video, audio, _ = make_batch(64)
with torch.no_grad(), adapted.disable_adapter():
    assert torch.equal(adapted(video, audio), model(video, audio))

# %%
# Only the adapters are saved.

directory = Path(tempfile.mkdtemp())
adapted.save_pretrained(directory)
print(f"{(directory / 'adapter_model.safetensors').stat().st_size:,} bytes of adapters")
loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), directory)

# %%
# Merging adds the adapters to the weights. The result is a plain model with the same output.

merged = loaded.merge_and_unload().eval()
with torch.no_grad():
    expected = adapted(video, audio @ microphone)
    difference = (merged(video, audio @ microphone) - expected).abs().max().item()
print(merged.relation)
print(f"largest logit {expected.abs().max().item():.1f}, largest difference {difference:.1e}")
assert difference < 1e-3

# %%
# int8 weights
# ------------
# torchao replaces the weight of each :class:`torch.nn.Linear` in a model, in place, by 8-bit integers with one scale
# per output. Biases and activations stay the same. This saves memory, not time: each call first converts the integers
# to floating-point numbers.

video, audio, answer = make_batch(1000)
audio = audio @ microphone
with torch.no_grad():
    expected = merged(video, audio)


def compare(name: str, changed: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Print the size of a model, the largest difference of its logits, and its accuracy."""
    with torch.no_grad():
        logits = changed(video.to(dtype), audio.to(dtype)).float()
    difference = (logits - expected).abs().max().item()
    right = ((logits > 0) == answer.bool()).float().mean().item()
    size = get_model_size_in_bytes(changed)
    print(f"{name:18} {size:7,} bytes   largest difference {difference:.3f}   accuracy {right:.2%}")


int8 = copy.deepcopy(merged)
quantize_(int8, Int8WeightOnlyConfig())
compare("float32", merged)
compare("int8", int8)
print(int8.relation.q_proj)

# %%
# ``filter_fn`` selects the modules. Here only the attention is quantized.

attention_only = copy.deepcopy(merged)
quantize_(
    attention_only,
    Int8WeightOnlyConfig(),
    filter_fn=lambda module, path: isinstance(module, nn.Linear) and path.startswith("relation."),
)
compare("int8 attention", attention_only)

# %%
# bfloat16 weights
# ----------------
# All weights and inputs have 16 bits. Quantizing such a model gives integer weights with scales and biases of 16 bits.

bfloat16 = copy.deepcopy(merged).bfloat16()
compare("bfloat16", bfloat16, torch.bfloat16)
quantize_(bfloat16, Int8WeightOnlyConfig())
compare("int8 in bfloat16", bfloat16, torch.bfloat16)

# %%
# Masks and ``need_weights`` work in all these models. Adapters and quantization also work for the projections of
# :class:`~crossmodal_attn.AGSCA` and of a whole network.
