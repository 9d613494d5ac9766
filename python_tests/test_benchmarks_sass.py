"""Instructions are counted by loop, in text as cuobjdump -sass prints it."""

from __future__ import annotations

import io

from benchmarks.measure.sass import read_kernels, table

TEXT = """
        code for sm_90
                Function : _Z6kernel
        .headerflags    @"EF_CUDA_SM90"
        /*0000*/               @P3 BRA 0xc0 ;                 /* 0x00000a00ff017b82 */
                                                              /* 0x000e700000000800 */
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;   /* 0x0 */
        /*0020*/                   LDS.64 R4, [R2] ;          /* 0x0 */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ; /* 0x0 */
        /*0040*/               @P1 BRA 0x30 ;                 /* 0x0 */
        /*0050*/                   MUFU.EX2 R4, R4 ;          /* 0x0 */
        /*0060*/                   MUFU.RCP R4, R4 ;          /* 0x0 */
        /*0070*/                   STL [R1], R4 ;             /* 0x0 */
        /*0080*/              @!P0 BRA 0x10 ;                 /* 0x0 */
        /*0090*/                   FADD R4, R4, R4 ;          /* 0x0 */
        /*00a0*/               @P2 BRA 0x90 ;                 /* 0x0 */
        /*00b0*/                   EXIT ;                     /* 0x0 */
        /*00c0*/                   BRA 0x10 ;                 /* 0x0 */
                Function : _Z5other
        /*0000*/                   EXIT ;                     /* 0x0 */
"""


def test_loops_that_multiply_are_counted_without_the_loops_inside():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(read_kernels(io.StringIO(TEXT))).splitlines()
    ]
    header = rows[0]
    outer, inner = (dict(zip(header, row, strict=True)) for row in rows[2:])
    assert (outer["kernel"], outer["loop"]) == ("_Z6kernel", "0x10")
    assert (outer["all"], outer["mma"], outer["ldmatrix"], outer["shared"]) == ("6", "0", "1", "1")
    assert (outer["exp"], outer["spills"]) == ("1", "1")
    assert (inner["loop"], inner["all"], inner["mma"]) == ("0x30", "2", "1")


def test_kernels_are_selected_by_name():
    assert len(table(read_kernels(io.StringIO(TEXT)), "other").splitlines()) == 2
