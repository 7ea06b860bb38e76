"""The model in float64: the textbook formulas over the weights that a GGUF file's blocks define, nothing rounded. Tests only.

Llama (RMSNorm, rotary positions on interleaved pairs as GGUF stores them, grouped queries, SwiGLU) and Gemma 3 (a norm after
each sublayer and on each head of q and k, GeGLU, a scaled embedding, five layers with a window and a rotary base of their own
to one without). Written from the formulas, sharing no code with isobit.
"""
import gguf
import numpy as np
from gguf.quants import dequantize


class Reference:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = reader.fields
        architecture = self.value("general.architecture")
        if architecture not in ("llama", "gemma3"):
            raise SystemExit(f"{path}: architecture is {architecture}; this reference is of llama and gemma3")
        self.gemma = architecture == "gemma3"
        self.tensors = {t.name: t for t in reader.tensors}
        key = lambda name: self.value(f"{architecture}.{name}")
        self.layers = key("block_count")
        self.heads = key("attention.head_count")
        self.kv_heads = key("attention.head_count_kv")
        self.hidden = key("embedding_length")
        self.head_dim = key("attention.key_length") if self.gemma else self.hidden // self.heads
        self.window = key("attention.sliding_window") if self.gemma else 0
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

    def has_window(self, layer):
        return self.gemma and (layer + 1) % 6 != 0

    def rotate(self, x, theta):
        """x [tokens, heads, head_dim]; element 2i turns with 2i + 1, in Gemma i with i + dim/2."""
        tokens, _, dim = x.shape
        frequencies = theta ** (-2.0 * np.arange(dim // 2) / dim)
        angle = np.arange(tokens)[:, None, None] * frequencies
        if self.gemma:
            low, high = x[..., : dim // 2], x[..., dim // 2 :]
            return np.concatenate([low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=-1)
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = odd * np.cos(angle) + even * np.sin(angle)
        return out

    def attention(self, x, layer):
        tokens, prefix = x.shape[0], f"blk.{layer}."
        split = lambda name, heads: (x @ self.weight(prefix + name).T).reshape(tokens, heads, self.head_dim)
        normed = lambda y, name: self.norm(y, prefix + name) if self.gemma else y
        theta = 10000.0 if self.has_window(layer) else self.theta
        q = self.rotate(normed(split("attn_q.weight", self.heads), "attn_q_norm.weight"), theta)
        k = self.rotate(normed(split("attn_k.weight", self.kv_heads), "attn_k_norm.weight"), theta)
        v = split("attn_v.weight", self.kv_heads)
        group = self.heads // self.kv_heads
        out = np.empty_like(q)
        hidden = np.triu(np.ones((tokens, tokens), bool), 1)
        if self.has_window(layer):
            hidden |= np.tril(np.ones((tokens, tokens), bool), -self.window)
        for h in range(self.heads):
            scores = q[:, h] @ k[:, h // group].T / np.sqrt(self.head_dim)
            scores[hidden] = -np.inf
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, h] = p @ v[:, h // group] / p.sum(axis=1, keepdims=True)
        return out.reshape(tokens, -1) @ self.weight(prefix + "attn_output.weight").T

    def activation(self, x):
        if self.gemma:
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x / (1 + np.exp(-x))

    def hidden_states(self, tokens):
        x = self.embedding[np.asarray(tokens)]
        if self.gemma:
            x = x * np.sqrt(self.hidden)
        for i in range(self.layers):
            prefix = f"blk.{i}."
            after = lambda y, name: self.norm(y, prefix + name) if self.gemma else y
            x = x + after(self.attention(self.norm(x, prefix + "attn_norm.weight"), i), "post_attention_norm.weight")
            y = self.norm(x, prefix + "ffn_norm.weight")
            gate = self.activation(y @ self.weight(prefix + "ffn_gate.weight").T)
            up = y @ self.weight(prefix + "ffn_up.weight").T
            x = x + after((gate * up) @ self.weight(prefix + "ffn_down.weight").T, "post_ffw_norm.weight")
        return self.norm(x, "output_norm.weight")

    def log_probabilities(self, tokens):
        """[tokens, vocab]: row i predicts token i + 1."""
        return log_softmax(self.hidden_states(tokens) @ self.head.T)

    def scores(self, tokens):
        """Log-probabilities of tokens 1, 2, …, and the likeliest token at each of their places."""
        states = self.hidden_states(tokens)
        return scores_of_rows(lambda begin, end: states[begin:end] @ self.head.T, tokens)


def log_softmax(logits):
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def scores_of_rows(logits, tokens, rows=64):
    """As Reference.scores, from logits(begin, end): all rows at once would take a gigabyte for 500 tokens of Gemma's."""
    scores, best = [], []
    for begin in range(0, len(tokens) - 1, rows):
        end = min(begin + rows, len(tokens) - 1)
        x = log_softmax(logits(begin, end))
        scores.append(x[np.arange(end - begin), tokens[begin + 1 : end + 1]])
        best.append(x.argmax(axis=1))
    return np.concatenate(scores), np.concatenate(best)
