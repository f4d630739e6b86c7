#!/usr/bin/env python3
"""PyTorch's optimizers on the cases of these benches, through `Optimizer.step()` as its users call it.

    torch_adamw.py [--threads 1 2] [--case resnet50 ...] [--rule adamw ...] [--form fused foreach default] [--clip no yes] [--cuda] [--table]

Prints one JSON object a line, with the keys of `cargo bench -p optim-benches -- --json` and the rule names of this library, or a table
with `--table`. `form` is `fused` (one kernel a tensor on the CPU, a few for all on CUDA; SGD, Adam, AdamW and Adagrad only), `foreach`
(a few kernels for all on CUDA), or `default`, what PyTorch chooses if it is not told: on the CPU a loop over the tensors, on CUDA foreach.
With `--clip yes` the gradients' global norm is clipped by `clip_grad_norm_` before, in passes of its own.

The limit is the time of `p.add_(g, alpha=0)`, which moves 12 bytes an element, times the bytes of the step over 12. It takes turns with
the step: over the same tensors in the large cases; over one flat pair of the same size where there are many tensors or few elements,
so that it holds nothing of what a call costs. Needs PyTorch and nothing else.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import torch

CASES = pathlib.Path(__file__).parent.parent / "cases"
ROUNDS = 9
ROUND = 0.04  # seconds, at least
FEW, PATIENCE = 3, 5.0  # the fewest rounds of something slow, and the seconds that more of them may take
LARGE = 1 << 24  # elements

# The library's name: PyTorch's optimizer, and the state arrays that a step reads and writes.
RULES = {
    "sgd": (lambda p, **how: torch.optim.SGD(p, lr=1e-3, **how), 0),
    "momentum": (lambda p, **how: torch.optim.SGD(p, lr=1e-3, momentum=0.9, **how), 1),
    "adam": (lambda p, **how: torch.optim.Adam(p, lr=1e-3, **how), 2),
    "adam_amsgrad": (lambda p, **how: torch.optim.Adam(p, lr=1e-3, amsgrad=True, **how), 3),
    "adamw": (lambda p, **how: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01, **how), 2),
    "adagrad": (lambda p, **how: torch.optim.Adagrad(p, lr=1e-3, **how), 1),
    "rms_prop_plain": (lambda p, **how: torch.optim.RMSprop(p, lr=1e-3, **how), 1),
    "nadam": (lambda p, **how: torch.optim.NAdam(p, lr=1e-3, **how), 2),
    "radam": (lambda p, **how: torch.optim.RAdam(p, lr=1e-3, **how), 2),
    "ada_max": (lambda p, **how: torch.optim.Adamax(p, lr=1e-3, **how), 2),
    "adadelta": (lambda p, **how: torch.optim.Adadelta(p, lr=1e-3, **how), 2),
    "rprop": (lambda p, **how: torch.optim.Rprop(p, lr=1e-3, **how), 2),
    "asgd": (lambda p, **how: torch.optim.ASGD(p, lr=1e-3, **how), 1),
    "ada_factor_plain": (lambda p, **how: torch.optim.Adafactor(p, lr=1e-3, **how), 0),
}
FUSED = {"sgd", "momentum", "adam", "adam_amsgrad", "adamw", "adagrad"}


def shapes(case):
    lines = (CASES / f"{case}.txt").read_text().split("\n")
    return [[int(extent) for extent in line.replace("x", " ").split()] for line in lines if line.strip()]


def tensors(case, device):
    """Parameters with gradients, each in an allocation of its own."""
    generator = torch.Generator(device=device).manual_seed(1)
    parameters = []
    for shape in shapes(case):
        parameter = torch.nn.Parameter(torch.empty(shape, device=device).normal_(generator=generator))
        grad = torch.empty(shape, device=device).normal_(generator=generator)
        parameter.grad = 0.01 * (grad + grad.sign())
        parameters.append(parameter)
    return parameters


def check(rule, parameters, step):
    """The first step of these rules goes against the gradient's sign, by a length that is known."""
    p = [parameter.detach().flatten()[:64].clone() for parameter in parameters]
    step()
    for before, parameter in zip(p, parameters):
        move = parameter.detach().flatten()[:64] - before
        grad = parameter.grad.flatten()[:64]
        if rule in ("adam", "adam_amsgrad", "adamw"):
            expected = -1e-3 * grad.sign() - (1e-5 * before if rule == "adamw" else 0)
            assert torch.allclose(move, expected, rtol=1e-2, atol=1e-6), (rule, move, expected)
        elif rule in ("sgd", "momentum"):
            assert torch.allclose(move, -1e-3 * grad, rtol=5e-2, atol=5e-7), (rule, move)
        assert (move != 0).any(), rule


def seconds(calls, call, wait):
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - start) / calls


HEADER = f"{'form':8}{'case':14}{'rule':16}{'clip':5}{'us/step':>10}{'ns/param':>10}{'GB/s':>8}{'ratio_to_limit':>16}"


def columns(row):
    """Of the library's own table those that differ here."""
    clip = "yes" if row["clip"] else "no"
    return (
        f"{row['form']:8}{row['case']:14}{row['rule']:16}{clip:5}{row['us_per_step']:10.1f}"
        f"{row['ns_per_param']:10.4f}{row['gbps']:8.1f}{row['ratio_to_limit']:16.2f}"
    )


def measure(case, rule, form, clip, threads, device):
    torch.set_num_threads(max(threads, 1))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    make, slots = RULES[rule]
    parameters = tensors(case, device)
    optimizer = make(parameters, **({} if form == "default" else {form: True}))

    def step():
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()

    elements = sum(parameter.numel() for parameter in parameters)
    if elements >= LARGE:
        written, read = [p.detach() for p in parameters], [p.grad for p in parameters]
    else:
        written, read = [torch.ones(elements, device=device)], [torch.ones(elements, device=device)]

    def limit():
        torch._foreach_add_(written, read, alpha=0.0)

    # `clip_grad_norm_` writes the clipped gradients back, so later steps clip nothing: it costs the same.
    if not clip:
        check(rule, parameters, step)
    both, times = [limit, step], [[], []]
    for call in both:
        seconds(1, call, wait)
    calls = [max(1, math.ceil(ROUND / max(seconds(1, call, wait), 1e-9))) for call in both]
    round_time = sum(count * seconds(1, call, wait) for count, call in zip(calls, both))
    for _ in range(max(FEW, min(ROUNDS, int(PATIENCE / round_time)))):
        for nth, call in enumerate(both):
            times[nth].append(seconds(calls[nth], call, wait))
    times[0].append(seconds(calls[0], limit, wait))

    size = 12 + 8 * slots + (4 if clip else 0)
    limits = [t * size / 12 for t in times[0]]
    taken = statistics.median(times[1])
    ratio = statistics.median(2 * t / (a + b) for t, a, b in zip(times[1], limits, limits[1:]))
    row = dict(
        backend="torch",
        form=form,
        rule=rule,
        case=case,
        threads=threads,
        dtype="f32",
        state="f32",
        clip=clip,
        us_per_step=taken * 1e6,
        ns_per_param=taken * 1e9 / elements,
        gbps=elements * size / taken / 1e9,
        bytes_per_param=size,
        limit_us=statistics.median(limits) * 1e6,
        ratio_to_limit=ratio,
        ratio_to_f32=ratio,
    )
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [path.stem for path in CASES.glob("*.txt") if not path.stem.startswith("groups")]
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--case", nargs="+", choices=every, default=sorted(every))
    parser.add_argument("--rule", nargs="+", choices=RULES, default=["sgd", "momentum", "adam", "adamw"])
    parser.add_argument("--form", nargs="+", choices=["fused", "foreach", "default"], default=["fused"])
    parser.add_argument("--clip", nargs="+", choices=["no", "yes"], default=["no"])
    parser.add_argument("--cuda", action="store_true", help="on the GPU; threads do not count")
    parser.add_argument("--table", action="store_true", help="print columns for people")
    args = parser.parse_args()
    if args.cuda and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device")
    device, threads = ("cuda", [0]) if args.cuda else ("cpu", args.threads)
    if args.table:
        print(HEADER)
    for case in args.case:
        for rule in args.rule:
            for form in args.form:
                if form == "fused" and rule not in FUSED:
                    continue
                for clip in args.clip:
                    for count in threads:
                        row = measure(case, rule, form, clip == "yes", count, device)
                        print(columns(row) if args.table else json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
