"""What is said of the compiler's tables: counts, and which file to take where INT8 wins nothing."""

from dataclasses import replace

from hqp_lightning.records import CompiledEngine
from hqp_lightning.report.compiled import advice, compiler_line, compiler_table

FP16 = CompiledEngine("pruned", "fp16", "8.6", 74, 6_300_000, 0, 0, (), 5_000_000, "engines/f.engine", "1.7", 1)
INT8 = CompiledEngine("pruned", "int8", "8.6", 90, 7_200_000, 2, 3, ("/c in FP16",), 9_000_000, "engines/i", "1.7", 1)


def test_fp16_is_recommended_where_int8_wins_nothing(report):
    text = advice(replace(report, compiled=(FP16, INT8)))
    assert text.startswith("Take engines/f.engine for compute capability 8.6: ")
    assert "(90 kernels to 74, 7.20 MB moved to 6.30 MB)" in text
    assert not advice(replace(report, compiled=(FP16, replace(INT8, kernels=73))))  # it wins kernels
    assert not advice(replace(report, compiled=(FP16, replace(INT8, bytes_moved=6_200_000))))
    assert not advice(replace(report, compiled=(FP16, replace(INT8, compute_capability="8.9"))))
    assert not advice(replace(report, compiled=(INT8,)))


def test_one_line_and_a_row_for_each_engine(report):
    other = replace(FP16, compute_capability="12.0")
    report = replace(report, compiled=(FP16, other, INT8))
    assert compiler_line(report) == (
        "NVIDIA's compiler (1.7), engines for compute capability 8.6, 12.0, not run here; 8.6: pruned FP16 74 kernels, "
        "5.00 MB; pruned INT8 90 kernels (2 of 3 layers in INT8), 9.00 MB"
    )
    assert compiler_table(report)[1][2] == (
        "pruned INT8", "8.6", "90", "7.20 MB", "2 of 3", "/c in FP16", "9.00 MB"
    )  # fmt: skip
