"""Peers of the block-scaled FP8 GEMM and of the grouped ones: cuBLASLt through torch, and DeepGEMM where it can be
imported. CUDA graph replay over rotated weights, median.

fp8_peers.py FILE: a case a line, "op case", as gpu_bench --list prints them; other operators are passed over.
Prints a line of JSON a measurement: {op, case, peer, us}.
fp8_peers.py --dump DIR M N K: writes a problem and the peers' answers to it as raw arrays, for gpu_tests to compare
errors (ISOBIT_FP8_PEERS=DIR gpu_tests --gtest_filter='*ErrorNoLarger*')."""
import json
import re
import sys
import time

import torch

from torch_peers import copies, graph_us

try:
    import deep_gemm
except ImportError:
    deep_gemm = None
try:
    from torch.nn.functional import ScalingType, scaled_mm
except ImportError:
    scaled_mm = None

BLOCK = 128


def padded(x, multiple):
    """The last dimension filled up with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % multiple))


def quantise_rows(x):
    """e4m3 and one scale per row and block: [m, k], [m, k / 128]."""
    m, k = x.shape
    blocks = x.float().view(m, k // BLOCK, BLOCK)
    scale = blocks.abs().amax(2).clamp(1e-8) / 448
    return (blocks / scale[..., None]).to(torch.float8_e4m3fn).view(m, k), scale


def quantise_blocks(w):
    """e4m3 and one scale per 128 × 128: [n, k], [n / 128, k / 128]."""
    n, k = w.shape
    full = torch.zeros(-(-n // BLOCK) * BLOCK, k, device=w.device)
    full[:n] = w.float()
    blocks = full.view(-1, BLOCK, k // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp(1e-8) / 448
    q = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(-1, k)
    return q[:n].contiguous(), scale


def answers(x, x_scale, weights, w_scale):
    """Of each peer its name and calls, one for each of the weights, that return x times them."""
    (m, k), n = x.shape, weights[0].shape[0]
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    m_major = padded(x_scale.t().contiguous(), 4).t()[:m]
    if deep_gemm is not None:
        yield "DeepGEMM", [lambda w=w: deep_gemm.fp8_gemm_nt((x, m_major), (w, w_scale), out) or out for w in weights]
    if scaled_mm is not None and m % 4 == 0:
        k_major = padded(w_scale, 4).t()[: k // BLOCK]
        yield "cuBLASLt", [
            lambda w=w: scaled_mm(x, w.t(), m_major, ScalingType.BlockWise1x128, k_major, ScalingType.BlockWise128x128,
                                  output_dtype=torch.bfloat16)
            for w in weights
        ]


def gemm(m, n, k):
    x, x_scale = quantise_rows(torch.randn(m, k, device="cuda"))
    w, w_scale = quantise_blocks(torch.randn(n, k, device="cuda"))
    return answers(x, x_scale, [w.clone() for _ in range(2 if m >= 1024 else copies(n * k))], w_scale)


def filled(shape, fp8):
    """Bell-shaped values, the same few million over and over."""
    some = torch.randn(1 << 22, device="cuda") * 120
    some = some.to(torch.float8_e4m3fn).view(torch.uint8) if fp8 else some.to(torch.bfloat16)
    full = torch.empty(shape, device="cuda", dtype=some.dtype)
    flat = full.view(-1)
    for at in range(0, flat.numel(), some.numel()):
        flat[at : at + some.numel()] = some[: flat.numel() - at]
    return full.view(torch.float8_e4m3fn) if fp8 else full


def scales(*shape):
    return (torch.rand(shape, device="cuda") + 0.5) / 448


def m_major(*shape):
    """Scales [..., rows, blocks] whose rows are neighbours in memory."""
    return scales(*shape[:-2], shape[-1], -(-shape[-2] // 4) * 4).mT[..., : shape[-2], :]


def grouped(fp8, masked, experts, top, n, k, tokens):
    """DeepGEMM's forms: contiguous, whose experts begin at multiples of its tile, and masked."""
    if deep_gemm is None:
        return
    chosen = torch.rand(tokens, experts, device="cuda").topk(top, 1).indices
    counts = torch.bincount(chosen.flatten(), minlength=experts).int()
    w = filled((experts, n, k), fp8)
    w_scale = scales(experts, -(-n // BLOCK), k // BLOCK)
    if masked:
        capacity = -(-int(counts.max()) // 64) * 64
        x, expected = filled((experts, capacity, k), fp8), max(1, tokens * top // experts)
        out = torch.empty(experts, capacity, n, device="cuda", dtype=torch.bfloat16)
        x_scale = m_major(experts, capacity, k // BLOCK)
        if fp8:
            call = lambda: deep_gemm.fp8_m_grouped_gemm_nt_masked((x, x_scale), (w, w_scale), out, counts, expected)
        else:
            call = lambda: deep_gemm.bf16_m_grouped_gemm_nt_masked(x, w, out, counts, expected)
    else:
        tile = deep_gemm.get_mk_alignment_for_contiguous_layout()
        layout = torch.arange(experts, device="cuda", dtype=torch.int32).repeat_interleave((counts + tile - 1) // tile * tile)
        rows = layout.numel()
        x, out = filled((rows, k), fp8), torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
        x_scale = m_major(rows, k // BLOCK)
        if fp8:
            call = lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous((x, x_scale), (w, w_scale), out, layout)
        else:
            call = lambda: deep_gemm.m_grouped_bf16_gemm_nt_contiguous(x, w, out, layout)
    yield "DeepGEMM", [call, call]


# As in bench/cuda/grouped_bench.cpp: experts, experts a token, N, K.
MOES = {
    "dsv3-up": (256, 8, 4096, 7168),
    "dsv3-down": (256, 8, 7168, 2048),
    "qwen3-30b-up": (128, 8, 1536, 2048),
    "qwen3-30b-down": (128, 8, 2048, 768),
}
FORMS = (
    (r"gemm_fp8 m(\d+)-(\d+)x(\d+)", lambda m: gemm(*map(int, m.groups()))),
    (
        r"gemm_(fp8|bf16)_(grouped|masked) (\S+)-t(\d+)",
        lambda m: grouped(m[1] == "fp8", m[2] == "masked", *MOES[m[3]], int(m[4])),
    ),
)


def measure(line, calls_of):
    op, case = line.split()
    for peer, calls in calls_of():
        torch.cuda.synchronize()
        time.sleep(0.3)  # as gpu_bench does: seconds of many rows make the clocks fall
        try:
            us = round(graph_us(calls), 2)
        except RuntimeError as error:
            print(f"{line}: {peer}: {str(error)[:200]}", file=sys.stderr)
            continue
        print(json.dumps({"op": op, "case": case, "peer": peer, "us": us}), flush=True)
    torch.cuda.empty_cache()


def dump(folder, m, n, k):
    """One problem, quantised as the peers do, and their answers: little-endian arrays, scales of x as [k / 128, m]."""
    x, x_scale = quantise_rows(torch.randn(m, k, device="cuda"))
    w, w_scale = quantise_blocks(torch.randn(n, k, device="cuda") * 0.05)
    arrays = {"x": x.view(torch.uint8), "w": w.view(torch.uint8), "x_scale": x_scale.t().contiguous(), "w_scale": w_scale}
    for peer, calls in answers(x, x_scale, [w], w_scale):
        arrays[peer] = calls[0]().clone().view(torch.int16)
    for name, array in arrays.items():
        array.cpu().numpy().tofile(f"{folder}/{name}.bin")
    with open(f"{folder}/shape.txt", "w") as file:
        print(m, n, k, file=file)


def main():
    torch.manual_seed(0)
    if sys.argv[1] == "--dump":
        return dump(sys.argv[2], *map(int, sys.argv[3:6]))
    with open(sys.argv[1]) as file:
        wanted = file.read().splitlines()
    for line in wanted:
        for pattern, form in FORMS:
            if match := re.fullmatch(pattern, line.strip()):
                measure(line.strip(), lambda: form(match))


if __name__ == "__main__":
    main()
