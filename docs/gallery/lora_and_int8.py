"""
LoRA (peft) and quantisation (torchao) on a CMRA model
======================================================

Every projection of a layer is a plain :class:`torch.nn.Linear` that is called as a module. So peft can put low-rank
adapters on it, and torchao can store its weights in 8 bits. Here a small model is trained, adapted to another
microphone, merged, and quantised. It needs ``pip install peft torchao``.
"""

# sphinx_gallery_thumbnail_path = "images/guides/lora_and_int8.svg"
import copy
import logging
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from crossmodal_attn import CMRA

# On import torchao logs which of its GPU kernels do not load here, and torch what it deprecates in torchao.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)

import peft  # noqa: E402
from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402
from torchao.utils import get_model_size_in_bytes  # noqa: E402

torch.manual_seed(0)

# %%
# A model to adapt
# ----------------
# Eight things are seen and heard in every video, each once, in orders of their own. Every sound is loud or soft. The
# question for each second of video: is the sound of what is seen here loud? To answer it, CMRA must find the second in
# which that thing is heard.

THINGS, WIDTH = 8, 64
looks, sounds, loud = torch.randn(THINGS, WIDTH), torch.randn(THINGS, WIDTH), torch.randn(WIDTH)


def make_batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy video and audio, and whether the sound of what is seen is loud."""
    seen, heard = torch.rand(2, size, THINGS).argsort(-1)
    volume = torch.randint(2, (size, THINGS)) * 2.0 - 1
    video, audio = looks[seen], sounds[heard] + volume[..., None] * loud
    answer = volume.gather(1, heard.argsort(-1).gather(1, seen))  # the volume in the second that fits
    return video + torch.randn(video.shape), audio + torch.randn(audio.shape), (answer > 0).float()


class Matching(nn.Module):
    """For every second of video: is its sound loud?"""

    def __init__(self) -> None:
        super().__init__()
        self.relation = CMRA(WIDTH, num_heads=2)
        self.head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Logits for every second."""
        return self.head(self.relation(video, audio)).squeeze(-1)


def train(model: nn.Module, steps: int, microphone: Tensor) -> None:
    """Train what is not frozen, and print the loss now and then."""
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
            print(f"step {step:3}   loss {loss.item():.3f}   right {right:.0%}")


model = Matching()
train(model, 300, microphone=torch.eye(WIDTH))

# %%
# LoRA on the projections
# -----------------------
# Another microphone mirrors half of the directions of the audio, and the model fails on it. LoRA adapts the attention
# alone: peft freezes the model, and learns a low-rank change of each projection that it is told of. ``q_proj``,
# ``kv_proj`` and ``out_proj`` are all that a CMRA has, but for ``context_kv_proj``, where ``context_dim`` is another
# width than ``embed_dim``.

directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH // 2)).Q
microphone = torch.eye(WIDTH) - 2 * directions @ directions.T

config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "kv_proj", "out_proj"])
adapted = peft.get_peft_model(copy.deepcopy(model), config)
adapted.print_trainable_parameters()
train(adapted, 200, microphone)

# %%
# Nothing else has changed: without the adapters it is the model that it was.

video, audio, _ = make_batch(64)
with torch.no_grad(), adapted.disable_adapter():
    assert torch.equal(adapted(video, audio), model(video, audio))

# %%
# What is saved are the adapters alone.

directory = Path(tempfile.mkdtemp())
adapted.save_pretrained(directory)
print(f"{(directory / 'adapter_model.safetensors').stat().st_size:,} bytes of adapters")
loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), directory)

# %%
# Merged, they are part of the weights: a plain model again, of plain projections, with the same output.

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
# torchao replaces the weight of every :class:`torch.nn.Linear` in a model by 8-bit integers with one scale for each
# output, in place. Biases and activations stay as they are. It saves memory rather than time: each call turns the
# integers into floating-point numbers first.

video, audio, answer = make_batch(1000)
audio = audio @ microphone
with torch.no_grad():
    expected = merged(video, audio)


def compare(name: str, changed: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Print the size of a model, how far its logits are from those expected, and how often it is right."""
    with torch.no_grad():
        logits = changed(video.to(dtype), audio.to(dtype)).float()
    difference = (logits - expected).abs().max().item()
    right = ((logits > 0) == answer.bool()).float().mean().item()
    size = get_model_size_in_bytes(changed)
    print(f"{name:18} {size:7,} bytes   greatest difference {difference:.3f}   right {right:.2%}")


int8 = copy.deepcopy(merged)
quantize_(int8, Int8WeightOnlyConfig())
compare("float32", merged)
compare("int8", int8)
print(int8.relation.q_proj)

# %%
# ``filter_fn`` chooses what is quantised. Here it is the attention, and the head keeps its precision.

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
# All weights, and with them the inputs, in 16 bits; and integers for the weights of that, whose scales and biases then
# have 16 bits too.

bfloat16 = copy.deepcopy(merged).bfloat16()
compare("bfloat16", bfloat16, torch.bfloat16)
quantize_(bfloat16, Int8WeightOnlyConfig())
compare("int8 in bfloat16", bfloat16, torch.bfloat16)

# %%
# Masks and ``need_weights`` work in all of them as before, and so do the other layers: adapters and integers fit the
# projections of :class:`~crossmodal_attn.AGSCA` and of a whole network too.
