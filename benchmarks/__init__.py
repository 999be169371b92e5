"""Time and peak memory of the 18 pair metrics at full size, against two plain ways to compute them.

    python -m benchmarks                          all parts at ViT-B/16 size, about 25 minutes on two cores
    python -m benchmarks --part time memory       some parts; results of the others stay
    python -m benchmarks --part memory --large    and the memory of eight ViT-L/14
    python -m benchmarks --sizes tiny             the same code in a minute, as a smoke test
    python -m pytest -o addopts= benchmarks/bench_metrics.py    with pytest-benchmark, tiny unless --sizes says more

`models` writes the checkpoints, `opponents` are the plain ways and at the same time oracles, `agreement` compares
values, `child` is what runs in a fresh process, `plan` says what runs, `machine` where, `report` shows it.
"""
