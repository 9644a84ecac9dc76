"""The launch table: tile sizes and warps of each kernel. Data only; ``launch.py`` explains it.

Written by ``python -m benchmarks.tune_kernels`` on a GPU; until that has run, the reasons name the
rule a row follows.
"""

# Apart from TABLE, whose rows the tuning script times over shapes of networks. Columns of a tile
# are ``block``, its rows ``elements / block``.
RASTER: dict[str, int | str] = {
    "elements": 512,
    "block": 32,
    "warps": 1,
    "why": "rule: every warp repeats the scalar work of a segment, 16 pixels per thread carry it",
}

TABLE: dict[str, dict[str, int | str]] = {
    "normal": {
        "elements": 1024,
        "block": 256,
        "warps": 4,
        "why": "rule: 8 normals per thread keep four Philox words and the polynomials in registers",
    },
    "sample_kl": {
        "elements": 1024,
        "block": 256,
        "warps": 4,
        "why": "rule: 8 latents per thread; latents are few, so launches count and not bytes",
    },
    "sample_kl_backward": {
        "elements": 1024,
        "block": 256,
        "warps": 4,
        "why": "rule: as the forward, whose noise it draws again",
    },
    "pixel": {
        "elements": 2048,
        "block": 2048,
        "warps": 4,
        "why": "rule: 16 pixels per thread are four 16-byte loads in flight, under 64 registers",
    },
    "dlogistic": {
        "elements": 512,
        "block": 512,
        "warps": 4,
        "why": "rule: 4 pixels per thread; each holds a running log-sum over the mixture",
    },
    "dlogistic_mixture": {
        "elements": 256,
        "block": 256,
        "warps": 4,
        "why": "rule: 2 pixels per thread; 4 of them spill registers on sm_100 in bf16",
    },
    "rescale": {
        "elements": 2048,
        "block": 2048,
        "warps": 4,
        "why": "rule: a copy; 16 elements per thread (32 of them spill on Triton 3.6)",
    },
    "gather": {
        "elements": 1024,
        "block": 1024,
        "warps": 4,
        "why": "rule: 8 pixels per thread; rows are gathered from far apart",
    },
}
