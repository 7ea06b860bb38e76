"""The model in float64: the textbook formulas over the weights that a GGUF file's blocks define, nothing rounded. Tests only.

Llama family (RMSNorm, rotary positions on interleaved pairs as GGUF stores them, grouped queries, SwiGLU). Written from the
formulas, sharing no code with isobit.
"""
import gguf
import numpy as np
from gguf.quants import dequantize


class Reference:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = reader.fields
        architecture = self.value("general.architecture")
        if architecture != "llama":
            raise SystemExit(f"{path}: architecture is {architecture}; this reference is of llama")
        self.tensors = {t.name: t for t in reader.tensors}
        key = lambda name: self.value(f"llama.{name}")
        self.layers = key("block_count")
        self.heads = key("attention.head_count")
        self.kv_heads = key("attention.head_count_kv")
        self.hidden = key("embedding_length")
        self.head_dim = self.hidden // self.heads
        self.eps = float(key("attention.layer_norm_rms_epsilon"))
        self.theta = float(key("rope.freq_base"))
        self.embedding = self.weight("token_embd.weight")
        self.head = self.weight("output.weight") if "output.weight" in self.tensors else self.embedding

    def value(self, name):
        return self.fields[name].contents()

    def weight(self, name):
        t = self.tensors[name]
        return dequantize(t.data, t.tensor_type).astype(np.float64)

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weight(name)

    def rotate(self, x):
        """x [tokens, heads, head_dim]; element 2i turns with 2i + 1."""
        tokens, _, dim = x.shape
        frequencies = self.theta ** (-2.0 * np.arange(dim // 2) / dim)
        angle = np.arange(tokens)[:, None, None] * frequencies
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = odd * np.cos(angle) + even * np.sin(angle)
        return out

    def attention(self, x, prefix):
        tokens = x.shape[0]
        split = lambda name, heads: (x @ self.weight(prefix + name).T).reshape(tokens, heads, self.head_dim)
        q = self.rotate(split("attn_q.weight", self.heads))
        k = self.rotate(split("attn_k.weight", self.kv_heads))
        v = split("attn_v.weight", self.kv_heads)
        group = self.heads // self.kv_heads
        out = np.empty_like(q)
        future = np.triu(np.ones((tokens, tokens), bool), 1)
        for h in range(self.heads):
            scores = q[:, h] @ k[:, h // group].T / np.sqrt(self.head_dim)
            scores[future] = -np.inf
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, h] = p @ v[:, h // group] / p.sum(axis=1, keepdims=True)
        return out.reshape(tokens, -1) @ self.weight(prefix + "attn_output.weight").T

    def hidden_states(self, tokens):
        x = self.embedding[np.asarray(tokens)]
        for i in range(self.layers):
            prefix = f"blk.{i}."
            x = x + self.attention(self.norm(x, prefix + "attn_norm.weight"), prefix)
            y = self.norm(x, prefix + "ffn_norm.weight")
            gate = y @ self.weight(prefix + "ffn_gate.weight").T
            up = y @ self.weight(prefix + "ffn_up.weight").T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.weight(prefix + "ffn_down.weight").T
        return self.norm(x, "output_norm.weight")

    def log_probabilities(self, tokens):
        """[tokens, vocab]: row i predicts token i + 1."""
        logits = self.hidden_states(tokens) @ self.head.T
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits
