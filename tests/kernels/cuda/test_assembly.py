"""PTX that no interpreter of Triton runs: evaluated here for every byte, and compiled for GPUs that are not there."""

import json
import operator
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)
import triton.language as tl  # isort: skip
from mllama_cli.kernels.codes import TABLES, Code
from mllama_cli.kernels.cuda import fixed_point, float8, halves, lookup


def evaluate(
    assembly: str, outputs: int, *inputs: int, memory: Callable[[int], int] = lambda address: 0, form: str = "<f"
) -> list[float]:
    """Return the outputs of PTX without control flow for the inputs $N and following, words of 32 bits.

    ``memory`` returns the word at an address of shared memory. Each output is one number, or several by ``form``.
    """
    floats: dict[str, float] = {}
    registers: dict[str, int] = {f"${outputs + index}": word for index, word in enumerate(inputs)}
    results = [float("nan")] * outputs

    def bytes_of(operand: str) -> bytes:
        return value(operand).to_bytes(4, "little")

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    def halves_of(operand: str) -> tuple[float, ...]:
        return struct.unpack("<2e", struct.pack("<I", value(operand)))

    for line in re.split(r";", assembly.strip().strip("{}")):
        name, _, rest = line.strip().partition(" ")
        halves = re.fullmatch(r"\{(\w+), (\w+)\}, ([\w$]+)", rest)
        parts = [part.strip() for part in rest.split(",")]
        if not name or name == ".reg":
            continue
        if name == "mov.b32" and halves is not None:
            registers[halves[1]], registers[halves[2]] = value(halves[3]) & 0xFFFF, value(halves[3]) >> 16
        elif name == "and.b32":
            registers[parts[0]] = value(parts[1]) & value(parts[2])
        elif name == "shl.b32":
            registers[parts[0]] = value(parts[1]) << value(parts[2]) & 0xFFFFFFFF
        elif name == "shr.b32":
            registers[parts[0]] = value(parts[1]) >> value(parts[2])
        elif name == "lop3.b32":
            assert parts[4] == "0xEA"  # a & b | c
            registers[parts[0]] = value(parts[1]) & value(parts[2]) | value(parts[3])
        elif name in ("dp4a.u32.u32", "dp4a.u32.s32"):
            second = bytes_of(parts[2])
            signed = struct.unpack("4b", second) if name.endswith("s32") else second
            sums = map(operator.mul, bytes_of(parts[1]), signed)
            registers[parts[0]] = (sum(sums) + value(parts[3])) & 0xFFFFFFFF
        elif name == "mad.lo.s32":
            registers[parts[0]] = (value(parts[1]) * value(parts[2]) + value(parts[3])) & 0xFFFFFFFF
        elif name == "ld.shared.b32":
            registers[parts[0]] = memory(value(parts[1].strip("[]")))
        elif name == "prmt.b32":
            given, selector = bytes_of(parts[1]) + bytes_of(parts[2]), value(parts[3])
            chosen = bytes(given[selector >> 4 * index & 7] for index in range(4))
            registers[parts[0]] = int.from_bytes(chosen, "little")
        elif name in ("mul.rn.f16x2", "fma.rn.f16x2"):
            added = halves_of(parts[3]) if name.startswith("fma") else (0.0, 0.0)
            products = map(operator.mul, halves_of(parts[1]), halves_of(parts[2]))
            sums_of_two = struct.pack("<2e", *map(operator.add, products, added))
            registers[parts[0]] = int.from_bytes(sums_of_two, "little")
        elif name == "add.rn.f16x2":
            sums_of_two = struct.pack("<2e", *map(operator.add, halves_of(parts[1]), halves_of(parts[2])))
            registers[parts[0]] = int.from_bytes(sums_of_two, "little")
        elif name == "cvt.rn.f16x2.e4m3x2":
            codes = torch.tensor([value(parts[1]) & 0xFF, value(parts[1]) >> 8], dtype=torch.uint8)
            numbers = codes.view(torch.float8_e4m3fn).float().tolist()
            registers[parts[0]] = int.from_bytes(struct.pack("<2e", *numbers), "little")
        elif name == "cvt.f32.f16":
            (floats[parts[0]],) = struct.unpack("<e", struct.pack("<H", value(parts[1])))
        elif name == "add.f32":
            floats[parts[0]] = floats[parts[1]] + floats[parts[2]]
        elif name == "mov.f32":
            floats[parts[0]] = floats[parts[1]]
        else:
            raise AssertionError(f"unknown instruction {line}")
    for index in range(outputs):
        results[index] = floats.get(f"${index}", results[index])
    words = [registers[f"${index}"] for index in range(outputs) if f"${index}" in registers]
    return [number for word in words for number in struct.unpack(form, struct.pack("<I", word))] or results


def shuffled(lane: int, index: int) -> int:
    """Return the lane whose value a lane gets from our shuffle, by the definition of ``shfl.sync.idx``."""
    found = re.fullmatch(r"shfl\.sync\.idx\.b32 \$0, \$1, \$2, (\w+), 0xFFFFFFFF;", lookup.SHUFFLE_ASSEMBLY.value)
    assert found is not None
    c = int(found[1], 0)
    segment, clamp = c >> 8 & 31, c & 31
    first = lane & segment
    last = first | clamp & ~segment
    source = first | index & 31 & ~segment
    return source if source <= last else lane


def test_every_lane_reads_the_entry_that_a_code_names_whatever_is_above_the_code() -> None:
    for lane in range(32):
        for code in range(16):
            for above in (0, 0x10, 0x7A0, -16):
                assert shuffled(lane, above | code) % 16 == code
                assert shuffled(lane, above | code) // 16 == lane // 16


def float16_of(number: float) -> float:
    (rounded,) = struct.unpack("<e", struct.pack("<e", number))
    return float(rounded)


@pytest.mark.parametrize(("code", "capability"), [("nf4", 90), ("fp4", 90), ("fp8", 90), ("fp8", 80)])
def test_products_in_float16_are_those_of_every_code_with_the_activation_at_its_place(
    code: Code, capability: int
) -> None:
    generator = random.Random(0)
    bits = 8 if code == "fp8" else 4
    unit, start, lane = halves.half_unit(code, capability), 0x480, 9
    table = [] if code == "fp8" else halves.pair_table(code, torch.device("cpu")).tolist()
    floats = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()

    def memory(address: int) -> int:
        offset = address - start
        assert 0 <= offset < 32768
        assert offset % 128 == 4 * lane, "a bank of another lane"
        return int(table[offset // 128]) & 0xFFFFFFFF

    for first in range(256):
        codes = [(first + 67 * index) % 256 for index in range(16)]
        codes = [0 if code == "fp8" and byte & 127 == 127 else byte for byte in codes]  # no numbers
        words = [int.from_bytes(bytes(codes[index : index + 4]), "little") for index in range(0, 16, 4)]
        x = [float16_of(generator.uniform(-2, 2)) for _ in range(512 // bits // 4)]
        pairs = [int.from_bytes(struct.pack("<2e", *x[index : index + 2]), "little") for index in range(0, len(x), 2)]
        assembly = halves.product_assembly(code, capability)
        (product,) = evaluate(assembly, 1, *words, start + 4 * lane, *pairs, memory=memory)
        numbers = [words[index * bits // 32] >> index * bits % 32 & (1 << bits) - 1 for index in range(len(x))]
        exact = [floats[number] if code == "fp8" else TABLES[code][number] for number in numbers]
        size = sum(abs(number * factor) for number, factor in zip(exact, x, strict=True))
        assert product * unit == pytest.approx(sum(map(operator.mul, exact, x)), abs=size / 500)


def test_values_of_tables_lose_next_to_nothing_in_float16() -> None:
    for code, bound in (("nf4", 7e-5), ("fp4", 1e-7)):
        words = halves.pair_table(code, torch.device("cpu"))
        for index in range(2):
            values = (words >> 16 * index & 0xFFFF).short().view(torch.float16).float() * halves.half_unit(code, 90)
            exact = torch.tensor(TABLES[code])[torch.arange(256) >> 4 * index & 15]
            assert float((values - exact).abs().max()) < bound


@pytest.mark.parametrize(
    ("assembly", "outputs"),
    [(lookup.SHIFTED_FP8_ASSEMBLY, 4), (float8.SHIFTED_ASSEMBLY, 2)],
    ids=["float32", "float16"],
)
def test_float8_becomes_the_same_number_for_every_byte_at_every_index(assembly: tl.constexpr, outputs: int) -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    for first in range(256):
        found = [(first + 67 * index) % 256 for index in range(4)]
        if any(byte & 127 == 127 for byte in found):  # no numbers
            continue
        results = evaluate(assembly.value, outputs, int.from_bytes(bytes(found), "little"), form="<2e")
        assert [256 * result for result in results] == [float(numbers[byte]) for byte in found]


@pytest.mark.parametrize("bits", [4, 8])
def test_fixed_point_products_of_a_quad_are_exact(bits: int) -> None:
    generator = random.Random(0)
    numbers = 32 // bits
    for trial in range(300):
        bound = 32767 if trial % 2 else 3
        x = [generator.choice((-bound, bound, generator.randint(-bound, bound))) for _ in range(4 * numbers)]
        words = [generator.getrandbits(32) if trial % 3 else 0xFFFFFFFF for _ in range(4)]
        packed: list[int] = []
        start = 0
        for word in range(4):
            of_word = [number & 0xFFFFFFFF for number in x[word * numbers : (word + 1) * numbers]]
            for first in range(2 if bits == 4 else 1):  # even numbers and odd ones
                given = of_word[first::2] if bits == 4 else of_word
                packed += map(int, evaluate(fixed_point.PACK_ASSEMBLY.value, 2, *given, form="<I"))
            both = packed[-4:] if bits == 4 else 2 * packed[-2:]
            start -= int(*evaluate(fixed_point.offset_assembly(bits), 1, *both, form="<i"))
        fields = [word >> bits * index & (1 << bits) - 1 for word in words for index in range(numbers)]
        parts, offset = fixed_point.parts_of(bits), 1 << bits - 1
        assert start == -sum(x) * offset * parts
        (product,) = evaluate(fixed_point.dot_assembly(bits), 1, *words, start & 0xFFFFFFFF, *packed, form="<i")
        assert product == parts * sum((field - offset) * number for field, number in zip(fields, x, strict=True))


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from mllama_cli.kernels.cuda.{module} import {kernel} as kernel
target = GPUTarget("cuda", {capability}, 32)
for code, bits, halves, element in {formats}:
    constants = dict({constants})
    types = {{name: kind.replace("bf16", element) for name, kind in dict({types}).items()}}
    signature = {{name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(source, target, {{"num_warps": {warps}}})
    assert made.asm["cubin"]
    floats = "f16x2.e4m3x2" if {capability} >= 89 else "{shifted}"
    integers = "lop3.b32" if "{module}" == "packed_matmul" else "dp4a.u32.s32"
    if constants.get("HALVES", False):
        codes = "fma.rn.f16x2"
    else:
        codes = "shfl.sync.idx" if bits == 4 else floats
    used = integers if code == "int" else codes
    assert not {assembly} or used in made.asm["ptx"]
"""

GEMV = (
    "N0=64, N1=64, N2=0, K=4096, BITS=bits, CODE=code, GROUP=64, BLOCK_N=4, BLOCK_Q=64, OUT_INTERLEAVE=1, "
    "RESIDUAL_INTERLEAVE=1, SWIGLU=True, HAS_NORM=True, HAS_RESIDUAL=False, HAS_FACTOR=False, CAPABILITY={capability}, "
    "RANKS=16, NEXT_RANKS=48, HALVES=halves, EARLY=True, PDL={pdl}",
    "x='*bf16', norm='*bf16', residual='*bf16', factor='*fp32', p0='*i32', p1='*i32', p2='*i32', s0='*fp32', "
    "s1='*fp32', s2='*fp32', out='*bf16', b='*bf16', copies='*i64', unit='fp32', next_a='*bf16', next_copies='*i64', "
    "next_scale='fp32', pairs='*i32', eps='fp32', programs='i32'",
)
KERNELS = {
    "packed_gemv": GEMV,
    "persistent_gemv": (GEMV[0] + ", CHUNKS=bits // 2, STAGED=True", GEMV[1]),
    "packed_matmul": (
        "BITS=bits, CODE=code, ONE_GROUP=True, EVEN=True, BLOCK_M=16, BLOCK_N=64, BLOCK_W=16, CAPABILITY={capability}",
        "x='*bf16', packed='*i32', scale='*bf16', out='*bf16', count='i32', n='i32', words_a_row='i32', "
        "words_a_group='i32', groups='i32', steps='i32'",
    ),
    "attention": (
        "KV_HEADS=8, GROUP=4, TOKENS=1, ROWS=16, QUERIES=4, DIM=128, HALF=64, SPLITS=2, CHUNK=2, BLOCK=64, "
        "INTERLEAVE=1, CROSS=True, STORED=False, NEXT_RANKS=32, NEXT_AT_ONCE=16, CAPABILITY={capability}, PDL={pdl}",
        "query='*bf16', key='*bf16', value='*bf16', norm='*bf16', rotation='*bf16', base='*u8', table='*i64', "
        "strides='*i64', scales='*fp32', limits='*i32', partial='*fp32', partial_max='*fp32', partial_sum='*fp32', "
        "arrived='*i32', out='*bf16', next_a='*bf16', next_copies='*i64', next_scale='fp32', eps='fp32', scale='fp32', "
        "query_stride='i32', key_stride='i32', table_stride='i32', cache_index='i32'",
    ),
    "dequantize": (
        "BITS=bits, CODE=code, BLOCK=256",
        "packed='*i32', scale='*bf16', out='*bf16', words='i32', columns='i32', group='i32', groups='i32'",
    ),
}
"""Constants and types of the arguments."""
CAPABILITIES = 80, 90
FORMATS = (
    ("int", 4, False, "bf16"),
    ("int", 8, False, "fp32"),
    ("nf4", 4, False, "fp32"),
    ("nf4", 4, True, "bf16"),
    ("fp8", 8, True, "bf16"),
    ("fp8", 8, False, "fp32"),
)
"""Codes, their bits, whether they are multiplied in float16, and the activations."""


COMPILE_ALL = """
import json, sys, traceback
failures = {}
for name, script in json.load(sys.stdin).items():
    try:
        exec(script, {})
    except Exception:
        failures[name] = traceback.format_exc()
print(json.dumps(failures))
"""


def script_for(module: str, capability: int) -> str:
    """Return the program that compiles a module's kernel in each of its formats."""
    constants, types = KERNELS[module]
    return COMPILE.format(
        module=module,
        kernel=f"{module}_kernel",
        capability=capability,
        constants=constants.format(pdl=capability >= 90, capability=capability),
        types=types,
        assembly="CAPABILITY" in constants,
        formats=FORMATS[-1:] if module == "attention" else FORMATS,
        shifted="0x1404" if module == "attention" else "cvt.f32.f16",
        warps=4,
    )


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """Compile all kernels in one process, where nothing is interpreted; return the tracebacks of those that fail."""
    scripts = {
        f"{module} {capability}": script_for(module, capability) for module in KERNELS for capability in (80, 90)
    }
    command = [sys.executable, "-c", COMPILE_ALL]
    done = subprocess.run(command, input=json.dumps(scripts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tracebacks: dict[str, str] = json.loads(done.stdout)
    return tracebacks


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="compiled and run by the other tests there")
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("module", KERNELS)
def test_kernels_compile_for_a_gpu(module: str, capability: int, failures: dict[str, str]) -> None:
    assert failures.get(f"{module} {capability}") is None
