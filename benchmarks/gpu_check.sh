#!/usr/bin/env bash
# Everything that needs a GPU, in one run of under ten minutes and without a network: build, device
# tests, the loss benchmark, compute-sanitizer, and with the rest of the time the benchmarks of whole
# trainings and of compiled rivals. Environment and sources stay unchanged.
#
#   benchmarks/gpu_check.sh [--output DIR] [--archive FILE.tar.gz] [--python PYTHON] [--budget SECONDS]
#
# DIR (default build/gpu_check) receives summary.json, one log for each step, and the result files of
# the benchmarks. FILE.tar.gz receives the same as one file. SECONDS (default 240) are the time of the
# loss benchmark, or less if less is left. Without a GPU only build and import run; the other
# steps are reported as skipped. The exit code is 1 if a step failed.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$root/build/gpu_check
archive=
python=python3
budget=240
total=590  # seconds for everything
usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while [[ $# -gt 0 ]]; do
  case $1 in
    --output) output=${2:?--output needs a folder}; shift 2 ;;
    --archive) archive=$(realpath -m "${2:?--archive needs a file}"); shift 2 ;;
    --python) python=${2:?--python needs a program}; shift 2 ;;
    --budget) budget=${2:?--budget needs the seconds of the loss benchmark}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
mkdir -p "$output"
output=$(cd "$output" && pwd)
command -v "$python" > /dev/null || { echo "there is no program $python; use --python" >&2; exit 2; }
python=$(command -v "$python")
PATH="$(dirname "$python"):$PATH"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
rm -f "$output"/steps.tsv
failed=0
required=1

# step NAME LIMIT COMMAND...: run the command for LIMIT seconds at most, keep its output, note how it
# ended. With required=0 its failure does not change the exit code.
step() {
  local name=$1 limit=$2 begin=$SECONDS left=$((total - SECONDS)) state
  shift 2
  if ((left < 10)); then
    skip "$name" "no time left"
    ((required)) && failed=1
    return 1
  fi
  ((limit > left)) && limit=$left
  echo "== $name"
  if timeout -k 10 "$limit" "$@" > "$output/$name.log" 2>&1; then
    state=passed
  else
    state=failed
    ((required)) && failed=1
    tail -n 25 "$output/$name.log"
  fi
  printf '%s\t%s\t%s\t\n' "$name" "$state" $((SECONDS - begin)) >> "$output/steps.tsv"
  echo "== $name: $state after $((SECONDS - begin)) s"
  [[ $state == passed ]]
}
# benchmark NAME SECONDS ARGUMENTS...: python -m benchmarks with a time budget of SECONDS, or of the
# time left minus 40 s for start and end and, if required, 90 s for the sanitizers. Prints its table.
benchmark() {
  local name=$1 seconds=$2 left=$((total - SECONDS - (required ? 130 : 40)))
  shift 2
  ((seconds > left)) && seconds=$left
  if ((seconds < 20)); then
    skip "$name" "no time left"
    ((required)) && failed=1
    return 1
  fi
  step "$name" $((seconds + 40)) "$python" -m benchmarks "$@" --device cuda \
    --time-budget "$seconds" --output "$output/${name#benchmark_}.json" \
    && cat "$output/$name.log"
}
skip() {
  echo "== $1: SKIPPED, $2"
  printf '%s\t%s\t0\t%s\n' "$1" skipped "$2" >> "$output/steps.tsv"
}
summarize() {
  "$python" - "$output" << 'PYTHON'
import json, pathlib, platform, sys

folder = pathlib.Path(sys.argv[1])
rows = [line.split("\t") for line in (folder / "steps.tsv").read_text().splitlines()]
summary = {
    "steps": [
        {"name": n, "state": s, "seconds": int(t), **({"reason": r} if r else {})}
        for n, s, t, r in rows
    ],
    "platform": platform.platform(),
}
try:
    import torch

    summary["torch"] = torch.__version__
    summary["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
except ImportError as error:
    summary["torch"] = str(error)
(folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
(folder / "steps.tsv").unlink()
print(f"{'step':<22}{'state':<10}{'seconds':>8}")
for step in summary["steps"]:
    print(f"{step['name']:<22}{step['state']:<10}{step['seconds']:>8}  {step.get('reason', '')}")
PYTHON
  echo "written to $output"
  if [[ -n $archive ]]; then
    tar -czf "$archive" -C "$(dirname "$output")" "$(basename "$output")" && echo "and to $archive"
  fi
}

gpu=$("$python" -c 'import torch; print("".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "")') \
  || { echo "$python cannot import torch" >&2; exit 2; }

# --- Build, in a copy, for this GPU alone (or for one common architecture to show that it builds) --
cp -r "$root"/{CMakeLists.txt,csrc,cac_ext,examples,python_tests,benchmarks,pyproject.toml} "$tree"
rm -f "$tree"/cac_ext/_C*.so "$tree"/cac_ext/build_config.json
generator="Unix Makefiles"
command -v ninja > /dev/null && generator=Ninja
build() {
  cmake -S "$tree" -B "$tree/build" -G "$generator" -DPython_EXECUTABLE="$python" \
    -DCMAKE_CUDA_ARCHITECTURES="${gpu:-80}-real" -DCMAKE_INSTALL_PREFIX="$tree/cac_ext" \
    ${gpu:+-DCAC_CUDA=ON} \
    && cmake --build "$tree/build" -j "$(nproc)" && cmake --install "$tree/build"
}
export -f build
export tree generator gpu python
export PYTHONPATH="$tree"
cd "$tree" || exit 1
if step build 420 bash -c build \
  && step import 120 "$python" -c 'import cac_ext, json; print(json.dumps(cac_ext.build_info(), indent=2))'; then
  cat "$output/import.log"
else
  summarize
  exit 1
fi

if [[ -z $gpu ]]; then
  reason="this torch finds no CUDA device"
  for name in device_tests trainer_tests benchmark_{loss,precision,wide} captured memcheck racecheck synccheck \
    benchmark_{step,convergence,compiled}; do
    skip "$name" "$reason"
  done
  summarize
  exit "$failed"
fi

nvidia-smi > "$output/nvidia-smi.log" 2>&1
# Files by name: others cannot be collected without the packages of the trainer.
step device_tests 180 "$python" -m pytest -m "gpu and not slow" \
  python_tests/test_cuda_device.py python_tests/test_loss_*.py
trainer=0
"$python" -c 'import omegaconf, PIL, sklearn, tensorboard, torchmetrics, torchvision, tqdm' 2> /dev/null \
  && trainer=1
if ((trainer)); then
  step trainer_tests 200 "$python" -m pytest -m "gpu and not slow" \
    python_tests/test_train_*.py python_tests/test_methods_all.py
else
  skip trainer_tests "the packages of the extra 'train' are missing"
fi

# --- The loss against its rivals; the matrix-product rate is measured in the same run -----------------
benchmark benchmark_loss $((budget * 7 / 10)) loss --cases voc cityscapes scale-n \
  --implementations ours official tiled naive flex-attention:bfloat16
benchmark benchmark_precision $((budget / 10)) loss --cases voc \
  --implementations {ours,official,tiled}:float32-high --no-memory
benchmark benchmark_wide $((budget / 8)) loss --cases wide --implementations {ours,tiled}:bfloat16 \
  --no-memory

# --- Launches and time of one step, as usual and replayed from a CUDA graph ---------------------------
cat > "$tree/captured.py" << 'PYTHON'
import torch, cac_ext
from benchmarks.cases import find_cases, make_inputs

for name in ("voc", "c-768"):
    inputs = make_inputs(find_cases([name])[0], 0).to("cuda", torch.bfloat16).requiring_grad()

    def step():
        inputs.features1.grad = inputs.features2.grad = None
        cac_ext.directional_contrastive_loss(*vars(inputs).values()).backward()

    def milliseconds(run, repeats=50):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    events = [e.name for e in recorded.events() if "cuda" in str(e.device_type).lower()]
    graph = torch.cuda.CUDAGraph()
    inputs.features1.grad = inputs.features2.grad = None
    with torch.cuda.graph(graph):
        step()
    print(f"{name}: {len(events)} launches and copies, {milliseconds(step):.3f} ms a step, "
          f"{milliseconds(graph.replay):.3f} ms replayed", *events, sep="\n  ")
PYTHON
step captured 60 "$python" captured.py && grep -v '^  ' "$output/captured.log"

# --- compute-sanitizer on small shapes, our kernels only ---------------------------------------------
cat > "$tree/small_shapes.py" << 'PYTHON'
import torch, cac_ext

kinds = [(torch.float32, "high")]
kinds += [(dtype, "highest") for dtype in (torch.float32, torch.bfloat16, torch.float16)]
for dtype, precision in kinds:
    torch.set_float32_matmul_precision(precision)
    for channels, anchors, negatives in (
        (5, 131, 66), (100, 70, 300), (250, 33, 130), (384, 70, 90), (1024, 33, 50),
    ):
        for temperature, eps in ((0.1, 0.0), (0.01, 1e-3)):
            torch.manual_seed(0)
            features = [
                torch.randn(anchors, channels, device="cuda", dtype=dtype, requires_grad=True)
                for _ in range(2)
            ]
            loss = cac_ext.directional_contrastive_loss(
                *features,
                *torch.rand(2, anchors, device="cuda"),
                *torch.randint(0, 3, (2, anchors), device="cuda"),
                torch.randn(negatives, channels, device="cuda", dtype=dtype),
                torch.randint(0, 3, (negatives,), device="cuda"),
                temperature=temperature, eps=eps, confidence_threshold=0.3,
            )
            loss.backward()
            assert loss.isfinite()
print("done")
PYTHON
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
for tool in memcheck racecheck synccheck; do
  if [[ -z $sanitizer ]]; then
    skip $tool "compute-sanitizer is not installed"
  else
    options=(--tool "$tool" --error-exitcode 1 --kernel-regex kns=cac)
    # Calls that fail by design, as when torch asks for a missing driver feature, are no errors.
    [[ $tool == memcheck ]] && options+=(--report-api-errors no)
    # Without torch's caching allocator the bounds of every tensor are checked.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step $tool 120 "$sanitizer" "${options[@]}" \
      "$python" small_shapes.py
  fi
done

# --- With the rest of the time -----------------------------------------------------------------------
required=0
if ((trainer)); then
  benchmark benchmark_step 60 step --negatives 500 19200 --repeats 5
  step benchmark_convergence 90 "$python" -m benchmarks convergence --device cuda --seeds 1 \
    --iterations 20 --output "$output/convergence.json" && cat "$output/benchmark_convergence.log"
else
  for name in benchmark_{step,convergence}; do
    skip $name "the packages of the extra 'train' are missing"
  done
fi
benchmark benchmark_compiled 60 loss --cases voc --implementations ours official-compiled --no-memory
summarize
exit "$failed"
