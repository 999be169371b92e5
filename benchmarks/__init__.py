"""Time and peak memory of the 18 pair metrics and of the merge methods at full size, against plain code.

    python -m benchmarks                          the metrics at ViT-B/16 size, about 25 minutes on two cores
    python -m benchmarks --part time memory       some parts; results of the others stay
    python -m benchmarks --part memory --large    and the memory of eight ViT-L/14
    python -m benchmarks --part merge             the merge methods instead: 2, 8 and 20 models
    python -m benchmarks --part merge --models 2 --methods tsv iso_c ties    some of that
    python -m benchmarks --sizes tiny             the same code in a minute, as a smoke test
    python -m pytest -o addopts= benchmarks/bench_metrics.py    with pytest-benchmark, tiny unless --sizes says more

`models` writes the checkpoints, `opponents` and `merge_opponents` are the plain ways and at the same time oracles,
`agreement` compares values, `merges` makes the methods, `child` is what runs in a fresh process, `plan` says what
runs, `machine` where, `report` and `merge_report` show it.
"""
