#!/usr/bin/env python3
"""Writes tests/truth/families: for each family a tiny random model as transformers saves it, and its logits in float32.

    python3 tests/truth/make_family_goldens.py [--check]

The logits come from transformers on the CPU; the prompt is longer than the windows and than the original contexts of the
stretched rotary tables. `bf16_rms` in a golden is how far the same model is from itself when its activations are rounded to
bf16 at the rounding points of docs/numerics.md N20: what rounding alone may do, and the unit of the tests' bound. --check
makes everything again and compares the logits with the committed ones. It makes its own venv (PyTorch: some gigabytes).
"""
import argparse
import json
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from golden_venv import run_in_venv  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "families")
PACKAGES = ["torch", "transformers==5.23.0", "safetensors", "numpy"]

SHAPE = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=96, bos_token_id=0, eos_token_id=1,
             pad_token_id=None)
TOKENS = 44


def rope(theta=10000.0, **scaling):
    return {"rope_theta": theta, "rope_type": "default", **scaling}


# name: (model_type, settings beyond SHAPE)
MODELS = {
    "llama": ("llama", dict(rope_parameters=rope(), tie_word_embeddings=False, shards=True)),
    "llama-llama3": ("llama", dict(num_hidden_layers=1, tie_word_embeddings=True, attention_bias=True, rope_parameters=rope(
        500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16))),
    "llama-linear": ("llama", dict(num_hidden_layers=1, rope_parameters=rope(rope_type="linear", factor=4.0))),
    "llama-yarn": ("llama", dict(num_hidden_layers=1, rope_parameters=rope(
        rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5, original_max_position_embeddings=24))),
    "llama-f16": ("llama", dict(num_hidden_layers=1, rope_parameters=rope(), dtype="float16")),
    "mistral": ("mistral", dict(sliding_window=8, rope_parameters=rope())),
    "qwen2": ("qwen2", dict(rope_parameters=rope(1000000.0), tie_word_embeddings=True, use_sliding_window=True,
                            sliding_window=8, max_window_layers=1)),
    "qwen3": ("qwen3", dict(rope_parameters=rope(1000000.0))),
    "gemma2": ("gemma2", dict(sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=4.0,
                              final_logit_softcapping=6.0, rope_parameters=rope())),
    "gemma3": ("gemma3_text", dict(num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=16, rope_parameters={
        "sliding_attention": rope(100.0), "full_attention": rope(1000000.0, rope_type="linear", factor=8.0)})),
    "phi3": ("phi3", dict(num_attention_heads=2, num_key_value_heads=1, head_dim="leave out", sliding_window=20, original_max_position_embeddings=24, rope_parameters=rope(
        rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.5, 1.8], long_factor=[1.0, 1.4, 2.0, 2.8, 3.5, 4.0],
        original_max_position_embeddings=24, partial_rotary_factor=0.75))),
    "smollm3": ("smollm3", dict(no_rope_layer_interval=2, rope_parameters=rope(2000000.0), tie_word_embeddings=True)),
    # Its attention; the experts' place is taken by a dense FFN, as isobit has no experts yet.
    "gpt-oss": ("gpt_oss", dict(sliding_window=8, attention_bias=True, num_local_experts=0, rope_parameters=rope(
        150000.0, rope_type="yarn", factor=8.0, beta_fast=2.0, beta_slow=0.1, truncate=False,
        original_max_position_embeddings=24))),
}


def build(model_type, settings):
    """The model in float32, its weights drawn and then rounded to the type that it is saved in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaMLP
    settings = dict(settings)
    dtype = getattr(torch, settings.pop("dtype", "bfloat16"))
    settings = {key: value for key, value in {**SHAPE, **settings}.items() if value != "leave out"}
    config = AutoConfig.for_model(model_type, **settings, attn_implementation="eager")
    if model_type == "gpt_oss":
        config.num_local_experts, config.num_experts_per_tok = 1, 1
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        config.mlp_bias, config.hidden_act = False, "silu"
        for layer in model.model.layers:
            mlp = LlamaMLP(config)
            layer.mlp = DenseFfn(mlp)
        config.num_local_experts = 0
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        draw(name, p, "gemma" in model_type)
        p.data = p.data.to(dtype).float()
    return model.eval(), dtype


def draw(name, p, less_one):
    """Weights large enough that attention is not even and every part counts."""
    import torch
    if p.dim() == 1:
        norm = "norm" in name
        torch.nn.init.normal_(p, 0.0 if less_one or not norm else 1.0, 0.2 if norm else 0.5)
    elif "embed_tokens" in name:
        torch.nn.init.normal_(p, 0.0, 1.0)
    else:
        gain = 2.5 if any(k in name for k in ("q_proj", "k_proj", "qkv_proj")) else 1.2
        torch.nn.init.normal_(p, 0.0, gain / p.shape[1] ** 0.5)


def dense_ffn():
    import torch

    class Dense(torch.nn.Module):
        """A Llama FFN under the names of one, returning what gpt-oss's layer takes from its experts."""

        def __init__(self, mlp):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)), None

    return Dense


def DenseFfn(mlp):
    return dense_ffn()(mlp)


def rounding_hooks(model, dtype):
    """Rounds activations at N20's points (k, v and q before rather than after they turn)."""
    short = lambda x: x.to(dtype).float()
    hooks = []
    post = {"post_attention_layernorm", "post_feedforward_layernorm"} if "gemma" in model.config.model_type else set()
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("q_proj", "k_proj", "v_proj", "qkv_proj") or (("layernorm" in last or name == "model.norm") and last not in post):
            hooks.append(module.register_forward_hook(lambda m, args, out: short(out)))
        if last in ("o_proj", "down_proj"):
            hooks.append(module.register_forward_pre_hook(lambda m, args: (short(args[0]),)))
    return hooks


def logits(model, tokens):
    import torch
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


def golden(model, dtype, tokens):
    exact = logits(model, tokens)
    hooks = rounding_hooks(model, dtype)
    rounded = logits(model, tokens)
    for h in hooks:
        h.remove()
    return exact, float((rounded - exact).pow(2).mean().sqrt())


def make(name, folder):
    import torch
    from safetensors.torch import save_file
    model_type, settings = MODELS[name]
    settings = dict(settings)
    shards = settings.pop("shards", False)
    torch.manual_seed(sum(map(ord, name)))
    model, dtype = build(model_type, settings)
    tokens = torch.randint(2, SHAPE["vocab_size"], (TOKENS,)).tolist()
    exact, rms = golden(model, dtype, tokens)
    tensors, notes = {"logits": exact.contiguous()}, {"tokens": " ".join(map(str, tokens)), "bf16_rms": f"{rms:.6g}"}
    original = settings.get("original_max_position_embeddings")
    if original:  # what fits in the original context turns otherwise
        tensors["short_logits"] = logits(model, tokens[: original - 4]).contiguous()
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB" if shards else "1GB")
    for extra in ("generation_config.json",):
        path = os.path.join(folder, extra)
        if os.path.exists(path):
            os.remove(path)
    save_file(tensors, os.path.join(folder, "golden.safetensors"), metadata=notes)
    print(f"{name}: logits rms {exact.pow(2).mean().sqrt():.3f}, bf16_rms {rms:.4f}, "
          f"{sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)) / 1024:.0f} KiB")


def compare(name, made):
    from safetensors.torch import load_file
    new, old = (load_file(os.path.join(f, "golden.safetensors")) for f in (made, os.path.join(OUT, name)))
    worst = max(float((new[k] - old[k]).abs().max()) for k in old)
    print(f"{name}: largest difference {worst:.2e}")
    return worst < 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is committed instead of writing it")
    parser.add_argument("names", nargs="*", help="models to make; all where none is named")
    a = parser.parse_args()
    run_in_venv("family-goldens", PACKAGES)
    good = True
    for name in a.names or MODELS:
        if a.check:
            with tempfile.TemporaryDirectory() as folder:
                make(name, folder)
                good = compare(name, folder) and good
            continue
        shutil.rmtree(os.path.join(OUT, name), ignore_errors=True)
        os.makedirs(os.path.join(OUT, name))
        make(name, os.path.join(OUT, name))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
