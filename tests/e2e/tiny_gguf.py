"""Writes small GGUF files, good ones and damaged ones, with the standard library alone."""
import random
import struct

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
TENSOR_F32 = 0


def text(s):
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def array(key, element, items):
    return pair(key, ARRAY, struct.pack("<IQ", element, len(items)) + b"".join(items))


def byte_alphabet():
    """GPT-2's: printable Latin-1 stands for itself, other bytes for U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


class TinyModel:
    """A llama of two layers with random weights; the tokenizer has the 256 bytes and ChatML's two tokens."""

    def __init__(self, seed=1, architecture="llama", context=512):
        self.architecture, self.context = architecture, context
        self.hidden, self.ffn, self.heads, self.kv_heads, self.layers = 64, 96, 4, 2, 2
        self.vocab = 258
        self.template = None
        self.types = {}  # tensor: type number instead of F32
        self.poison = {}  # tensor: (index, value)
        self.more = []  # further metadata: pair(…)
        self._random = random.Random(seed)

    def pairs(self):
        p = self.architecture + "."
        u32 = lambda key, value: pair(key, U32, struct.pack("<I", value))
        f32 = lambda key, value: pair(key, F32, struct.pack("<f", value))
        tokens = byte_alphabet() + ["<|im_start|>", "<|im_end|>"]
        result = [
            pair("general.architecture", STRING, text(self.architecture)),
            pair("general.name", STRING, text("tiny")),
            u32(p + "block_count", self.layers),
            u32(p + "embedding_length", self.hidden),
            u32(p + "feed_forward_length", self.ffn),
            u32(p + "context_length", self.context),
            u32(p + "attention.head_count", self.heads),
            u32(p + "attention.head_count_kv", self.kv_heads),
            f32(p + "attention.layer_norm_rms_epsilon", 1e-5),
            f32(p + "rope.freq_base", 10000.0),
            pair("tokenizer.ggml.model", STRING, text("gpt2")),
            pair("tokenizer.ggml.pre", STRING, text("smollm")),
            array("tokenizer.ggml.tokens", STRING, [text(t) for t in tokens]),
            array("tokenizer.ggml.token_type", I32, [struct.pack("<i", 3 if t.startswith("<|") else 1) for t in tokens]),
            array("tokenizer.ggml.merges", STRING, []),
            u32("tokenizer.ggml.bos_token_id", 256),
            u32("tokenizer.ggml.eos_token_id", 257),
        ]
        if self.template is not None:
            result.append(pair("tokenizer.chat_template", STRING, text(self.template)))
        return result + self.more

    def tensors(self):
        size = self.hidden // self.heads
        matrix = lambda rows, columns, gain: (rows, columns, gain / columns**0.5, 0.0)
        norm = (1, self.hidden, 0.1, 1.0)
        yield "token_embd.weight", matrix(self.vocab, self.hidden, 6)
        for i in range(self.layers):
            b = f"blk.{i}."
            yield b + "attn_norm.weight", norm
            yield b + "attn_q.weight", matrix(self.heads * size, self.hidden, 1.5)
            yield b + "attn_k.weight", matrix(self.kv_heads * size, self.hidden, 1.5)
            yield b + "attn_v.weight", matrix(self.kv_heads * size, self.hidden, 1)
            yield b + "attn_output.weight", matrix(self.hidden, self.hidden, 1)
            yield b + "ffn_norm.weight", norm
            yield b + "ffn_gate.weight", matrix(self.ffn, self.hidden, 1)
            yield b + "ffn_up.weight", matrix(self.ffn, self.hidden, 1)
            yield b + "ffn_down.weight", matrix(self.hidden, self.ffn, 1)
        yield "output_norm.weight", norm
        yield "output.weight", matrix(self.vocab, self.hidden, 2)

    def build(self):
        table, data = [], bytearray()
        for name, (rows, columns, scale, center) in self.tensors():
            values = [self._random.gauss(center, scale) for _ in range(rows * columns)]
            if name in self.poison:
                index, value = self.poison[name]
                values[index] = value
            dimensions = [columns] if rows == 1 else [columns, rows]
            table.append(text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions,
                                                  self.types.get(name, TENSOR_F32), len(data)))
            data += struct.pack(f"<{len(values)}f", *values)
            data += bytes(-len(data) % 32)
        pairs = self.pairs()
        head = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(pairs)) + b"".join(pairs) + b"".join(table)
        return head + bytes(-len(head) % 32) + bytes(data)
